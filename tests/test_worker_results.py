"""What a worker says of the objects that it has made: who gets them, and what they replace."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from desk import CHEST, PACS, PROTOCOLS, Desk, ct, slices
from pydicom import dcmread

import model
from dicom_node import volume, worker
from dicom_node.config import Config, SiteProfile
from dicom_node.demo import sample
from dicom_node.ledger import Ledger
from dicom_node.spool import Spool


@pytest.fixture(scope="module")
def lamed(checkpoint: Path) -> model.LaMed:
    return model.load(checkpoint)


@pytest.fixture
def desk(config: Config, ledger: Ledger, spool: Spool, lamed: model.LaMed) -> Desk:
    return Desk(replace(config, destinations=(PACS,)), ledger, spool, lamed)


def test_each_destination_is_to_get_what_its_profile_says(desk: Desk) -> None:
    words = SiteProfile("words", "legacy-pacs", (("extras", ()),))
    viewer = replace(PACS, ae_title="VIEWER", profile="words")
    desk.config = replace(desk.config, destinations=(PACS, viewer), profiles=(words,))
    desk.receive(slices())
    desk.worker(known=PROTOCOLS).step()
    first, second = desk.ledger.deliveries(desk.job.id)
    assert first.labels == ("seg", "measurements", "draft")
    assert (second.destination, second.labels) == (str(viewer), ("draft.words",))
    found = desk.results()
    assert found["draft.words"].sop_uid != found["draft"].sop_uid


class Sure:
    """A mask that has been restored already."""

    def __init__(self, logits: Any) -> None:
        self.logits = logits

    def restore(self) -> Any:
        return self.logits


def test_how_sure_the_model_is_lies_where_the_mask_does(tmp_path: Path) -> None:
    made = sample.series(shape=(14, 20, 18), directions=np.diag([1.0, -1.0, -1.0]))
    source = volume.load(sample.write(made, tmp_path))
    target = CHEST.targets[0]
    logits = (source.image.array + 825.0).astype(np.float32)
    answer = model.Answer(target.id, "", "", "", (), 1.0, (Sure(logits),))  # type: ignore[arg-type]
    asked = replace(CHEST, questions=(target,))
    (finding,) = worker._findings(asked, [answer], worker._masks(asked, [answer]), source)
    assert finding.probability is not None
    assert finding.mask is not None
    found = finding.probability()
    assert found.array.dtype == np.float32
    assert found.geometry_equal(finding.mask)
    assert 0 <= found.array.min() < found.array.max() <= 1
    assert np.array_equal(found.array > 0.5, finding.mask.array != 0)


def again(desk: Desk, digest: str) -> None:
    """Let the same images be read anew, as by another model."""
    desk.jobs.enqueue(desk.study_uid, "ct_chest", desk.job.sop_uids, model_digest=digest, series=[])
    assert desk.worker().step()


def replaced(desk: Desk) -> set[str]:
    made = dcmread(desk.results()["draft"].path)
    return {
        str(instance.ReferencedSOPInstanceUID)
        for study in made.get("PredecessorDocumentsSequence", ())
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }


def test_a_report_that_takes_the_place_of_a_delivered_one_says_so(desk: Desk) -> None:
    desk.receive(ct())
    assert desk.worker().step()
    assert replaced(desk) == set()
    again(desk, "second")
    assert replaced(desk) == set(), "the first was not delivered"
    second = desk.results()["draft"]
    (delivery,) = desk.ledger.deliveries(desk.job.id)
    desk.ledger.record_delivery(delivery.id, "sent")
    again(desk, "third")
    assert replaced(desk) == {second.sop_uid}
    again(desk, "fourth")
    assert replaced(desk) == {second.sop_uid}, "the third was not delivered"
