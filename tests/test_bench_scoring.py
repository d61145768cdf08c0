"""Scoring: what perfect, silly and half-right answers get, counted by hand."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_models import Asked, Oracle, Silly, item, said

from model.bench.asking import BLIND, Run, ask
from model.bench.items import LIMITS, Item
from model.bench.judging import METRICS
from model.bench.patients import Patients
from model.bench.scoring import notes, score
from model.bench.text import TREEBANK

TASKS = {str(each) for each in METRICS}


@pytest.fixture(scope="module")
def patients() -> Patients:
    return Patients((32, 64, 64), 3, LIMITS)


def scored(patients: Patients, model: Asked, out: Path, **options: bool) -> dict[str, Any]:
    return score(ask(Run(model, patients), out), **options)


def task(entries: list[dict[str, Any]], name: str, **options: bool) -> dict[str, float]:
    """Score answers made by hand, and give the values of one task."""
    told = score(entries, **options)["tasks"][name]
    return {metric: each["value"] for metric, each in told["scores"].items()}


# --- perfect and silly --------------------------------------------------------------------------


def test_the_truth_scores_one_in_everything(patients: Patients, tmp_path: Path) -> None:
    found = scored(patients, Oracle.of(patients), tmp_path)
    for name in TASKS:
        told = found["tasks"][name]
        assert told["measured"], name
        for metric in METRICS[name]:
            if metric.name == "bertscore":
                assert metric.name not in told["scores"]
            elif metric.name == "ceiling":
                assert 0.3 < told["scores"][metric.name]["value"] < 1
            elif metric.name in told["scores"]:
                best = 1.0 if metric.higher else 0.0
                assert told["scores"][metric.name]["value"] == pytest.approx(best), (name, metric)
        primary = told["scores"][told["primary"]]
        assert primary["blind"] < 0.2
        assert primary["difference"] == pytest.approx(1 - primary["blind"])
    declining = found["declining"]["scores"]
    assert {name: each["value"] for name, each in declining.items()} == {
        "decline": 1.0, "accept": 1.0, "balanced": 1.0,
    }  # fmt: skip
    assert declining["balanced"]["blind"] == 0.5
    assert all(truth == word for truth, row in found["confusion"].items() for word in row)
    assert {each["right"] for each in found["calibration"]["bins"]} == {1.0}


def test_what_is_always_said_gets_no_more_with_the_image(
    patients: Patients, tmp_path: Path
) -> None:
    found = scored(patients, Silly(), tmp_path)
    for name in TASKS:
        for metric, each in found["tasks"][name]["scores"].items():
            if metric != "ceiling":
                assert each["difference"] == 0, (name, metric)
    declining = {name: each["value"] for name, each in found["declining"]["scores"].items()}
    assert declining == {"decline": 0.0, "accept": 1.0, "balanced": 0.5}
    letters = [
        each.letter
        for number in range(len(patients))
        for each in patients.subject(number).items
        if each.task == "closed_vqa"
    ]
    accuracy = found["tasks"]["closed_vqa"]["scores"]["accuracy"]
    assert accuracy["value"] == pytest.approx(letters.count("B") / len(letters))


def test_the_published_scoring_gives_the_truth_less_than_one(
    patients: Patients, tmp_path: Path
) -> None:
    found = scored(patients, Oracle.of(patients), tmp_path, reference=True)
    told = found["tasks"]["semantic_segmentation"]
    absent = [
        each.absent
        for number in range(len(patients))
        for each in patients.subject(number).items
        if each.task == "semantic_segmentation"
    ]
    # A right "not here" gets nothing.
    assert told["scores"]["dice"]["value"] < 1 - sum(absent) / len(absent)
    assert "declining" not in found


# --- counted by hand ----------------------------------------------------------------------------

REPORTS = (
    ("There is a nodule in the left lung.", "There is a nodule in the right lung."),
    ("There is no pleural effusion.", "There is a left pleural effusion."),
    ("There is a cyst in the left kidney. There is a stone in the gallbladder.",
     "There is a cyst in the left kidney."),
)  # fmt: skip


def test_findings_of_reports_are_counted_with_their_sides() -> None:
    entries = [
        said(item("caption", str(number), truth), told)
        for number, (truth, told) in enumerate(REPORTS)
    ]
    values = task(entries, "caption")
    # Found: nodule, cyst. Invented: effusion. Missed: stone. The nodule is on the wrong side.
    assert values["f1"] == pytest.approx(4 / 6)
    assert values["precision"] == values["recall"] == pytest.approx(2 / 3)
    assert values["laterality"] == 0.5
    assert values["sided_f1"] == pytest.approx(2 / 6)
    assert values["contradictions"] == pytest.approx(1 / 3)
    by_finding = score(entries)["tasks"]["caption"]["slices"]["finding"]
    assert {name: each["value"] for name, each in by_finding.items()} == {
        "cyst": 1.0, "effusion": 0.0, "nodule": 1.0, "stone": 0.0,
    }  # fmt: skip


CHOICES = ("nodule", "cyst", "stone", "none of these")


def closed(number: int, letter: str, **more: Any) -> Item:
    truth = f"{letter}. {CHOICES['ABCD'.index(letter)]}"
    groups = {"kind": "abnormality"} | more
    return item("closed_vqa", f"{number}?", truth, choices=CHOICES, letter=letter, groups=groups)


def test_a_letter_is_read_not_searched_for() -> None:
    entries = [
        said(closed(1, "A"), "A. nodule"),
        said(closed(2, "B"), "cyst"),
        said(closed(3, "A"), "C.A. B."),
        said(closed(4, "D"), "A. nodule"),
    ]
    assert task(entries, "closed_vqa") == {"accuracy": 0.5, "words": 0.5, "unread": 0.25}
    # Of a letter and another choice's words nobody knows which was meant.
    wavering = [said(closed(5, "B"), "A. cyst"), said(closed(6, "A"), "A. cyst")]
    assert task(wavering, "closed_vqa") == {"accuracy": 0.0, "words": 0.5, "unread": 1.0}
    assert score(wavering)["confusion"] == {"cyst": {"cyst": 1}, "nodule": {"cyst": 1}}
    # The published script finds "A." in the third, and no "B." in the second.
    assert task(entries, "closed_vqa", reference=True) == {"accuracy": 0.5}
    assert task(entries[2:3], "closed_vqa", reference=True) == {"accuracy": 1.0}
    assert score(entries)["confusion"] == {
        "cyst": {"cyst": 1},
        "nodule": {"nodule": 1, "no choice": 1},
        "none of these": {"nodule": 1},
    }


def test_an_open_answer_is_right_by_what_it_is_asked_for() -> None:
    entries = [
        said(item("open_vqa", "Stone?", "There is a stone in the left kidney."),
             "A stone is seen in the left kidney."),
        said(item("open_vqa", "Cyst?", "There is a cyst in the left kidney."),
             "There is a cyst in the right kidney."),
        said(item("open_vqa", "Yes?", "Yes.", groups={"kind": "yes_no"}), "Yes, there is."),
        said(item("open_vqa", "No?", "No.", groups={"kind": "yes_no"}), "Yes."),
        said(item("open_vqa", "Phase?", "Chest CT, arterial phase."), "chest CT, Arterial phase"),
    ]  # fmt: skip
    values = task(entries, "open_vqa")
    assert values["exact_finding"] == 0.5
    assert values["yes_no"] == 0.5
    assert values["exact"] == pytest.approx(1 / 5)
    assert values["right"] == pytest.approx(3 / 5)


def test_a_right_answer_that_also_invents_a_finding_is_wrong() -> None:
    truth = "There is no nodule or mass in the lungs."
    about = item("open_vqa", "Nodule?", truth)
    assert task([said(about, truth)], "open_vqa")["exact_finding"] == 1.0
    more = f"{truth} There is a left pleural effusion."
    assert task([said(about, more)], "open_vqa")["exact_finding"] == 0.0


def box(z: float, y: float, x: float) -> str:
    return f"It is at <bx_start>[0.0, 0.0, 0.0, {z}, {y}, {x}]<bx_end>."


HALF = (0.0, 0.0, 0.0, 0.4, 0.9, 0.9)  # of ten voxels: the first five slices


def rec(name: str, raw: str, truth: tuple[float, ...] | None = HALF) -> dict[str, Any]:
    about = item("rec", name, "It is somewhere.", box=truth, absent=truth is None)
    return said(about, raw) | {"grid": [10, 10, 10]}


def test_boxes_are_judged_by_their_overlap() -> None:
    entries = [
        rec("half", box(0.4, 0.9, 0.9)),  # all of it: 1
        rec("whole", box(0.9, 0.9, 0.9)),  # twice as much: 1/2
        rec("fifth", box(0.9, 0.9, 0.1)),  # 1/10 of 11/10 / 2: 1/6
        rec("none", "This image does not show it."),
        rec("gone", "This image does not show it.", None),
        rec("alarm", box(0.9, 0.9, 0.9), None),
        rec("broken", "It is at <bx_start>[0.1, oops]<bx_end>.", None),
    ]
    values = task(entries, "rec")
    shared = 0.5 * 1 * 0.2
    assert values["iou"] == pytest.approx((1 + 1 / 2 + shared / (0.5 + 0.2 - shared)) / 4)
    assert (values["acc25"], values["acc50"]) == (0.5, 0.5)
    assert values["decline"] == pytest.approx(1 / 3)
    assert values["wrong_decline"] == 0.25
    # The published script divides by the box around both, and takes ends as they are written.
    around = (0.4 * 0.9 * 0.9) / (0.9 * 0.9 * 0.9 + 1e-6)
    corner = (0.4 * 0.9 * 0.1) / (0.9 * 0.9 * 0.9 + 1e-6)
    first = (0.4 * 0.9 * 0.9) / (0.4 * 0.9 * 0.9 + 1e-6)
    found = task(entries, "rec", reference=True)
    assert found["iou"] == pytest.approx((first + around + corner) / 4)
    assert found["acc25"] == 0.5


def outline(
    name: str, dice: float | None, *, drawn: int = 1, soft: float = 0.5, **more: Any
) -> Any:
    about = item("semantic_segmentation", name, "This.", absent=dice is None, **more)
    mask = {"drawn": drawn, "dice": dice, "surface": None, "reference_dice": soft}
    return said(about, "This: [SEG]." if drawn else "It is not shown.", mask=mask)


OUTLINES = [
    outline("a", 0.8, groups={"organ": "liver", "target": "organ"}),
    outline("b", 0.6, groups={"organ": "spleen", "target": "organ"}),
    outline("c", 0.0, drawn=0, soft=0.0, groups={"organ": "spleen", "target": "organ"}),
    outline("d", None, drawn=0, soft=0.0, groups={"absence": "finding"}),
    outline("e", None, soft=0.0, groups={"absence": "same region"}),
]


def test_absent_targets_are_counted_apart_from_dice() -> None:
    values = task(OUTLINES, "semantic_segmentation")
    assert values["dice"] == pytest.approx((0.8 + 0.6 + 0.0) / 3)
    assert values["decline"] == 0.5
    assert values["wrong_decline"] == pytest.approx(1 / 3)
    reference = task(OUTLINES, "semantic_segmentation", reference=True)
    assert reference == {"dice": pytest.approx((0.5 + 0.5 + 0 + 0 + 0) / 5)}


def test_declining_all_or_nothing_is_worth_half() -> None:
    told = score(OUTLINES)["declining"]
    values = {name: each["value"] for name, each in told["scores"].items()}
    assert values["decline"] == 0.5
    assert values["accept"] == pytest.approx(2 / 3)
    assert values["balanced"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert told["slices"]["absent: finding"]["decline"]["value"] == 1.0
    assert told["slices"]["absent: same region"]["decline"]["value"] == 0.0
    assert "accept" not in told["slices"]["absent: finding"]
    timid = [each for each in OUTLINES if not each["mask"]["drawn"]]
    assert score(timid)["declining"]["scores"]["balanced"]["value"] == 0.5


def test_slices_count_their_own() -> None:
    slices = score(OUTLINES)["tasks"]["semantic_segmentation"]["slices"]
    assert {name: (each["value"], each["items"]) for name, each in slices["organ"].items()} == {
        "liver": (0.8, 1), "spleen": (pytest.approx(0.3), 2),
    }  # fmt: skip
    assert "target" not in slices, "one value is no slice"


def test_a_name_for_a_box_has_its_side() -> None:
    def named(name: str, truth: str, told: str, side: str) -> dict[str, Any]:
        return said(item("reg", name, truth, groups={"side": side} if side else {}), told)

    entries = [
        named("a", "The left kidney.", "the left kidney", "left"),
        named("b", "The left lung.", "The right lung.", "left"),
        named("c", "The liver.", "The liver.", ""),
        named("d", "The cyst in the left kidney.", "The cyst in the left kidney.", "left"),
    ]
    values = task(entries, "reg")
    assert values["exact"] == 0.75
    assert values["side"] == pytest.approx(2 / 3)
    assert values["exact_finding"] == 1.0


def test_published_text_metrics_are_those_of_one_order() -> None:
    truth, told = "the left kidney holds a stone", "the right kidney holds a stone"
    entries = [said(item("caption", "?", truth), told)]
    values = task(entries, "caption", reference=True)
    same = sum(a == b for a, b in zip(TREEBANK.findall(truth), TREEBANK.findall(told), strict=True))
    assert values["bleu"] == pytest.approx(same / 6)
    assert values["rouge1"] == pytest.approx(same / 6)
    assert set(values) == {"bleu", "rouge1", "meteor"}


# --- how sure -----------------------------------------------------------------------------------


def test_the_interval_draws_patients_not_questions() -> None:
    entries = []
    for patient, told in (("p", "A. nodule"), ("q", "B. cyst")):
        for number in range(20):
            about = item("closed_vqa", str(number), "A. nodule", id=f"{patient}{number}",
                         patient=patient, choices=CHOICES, letter="A")  # fmt: skip
            entries += [said(about, told), said(about, "B. cyst", condition=BLIND)]
    found = score(entries)["tasks"]["closed_vqa"]
    accuracy = found["scores"]["accuracy"]
    assert (found["items"], found["patients"]) == (40, 2)
    assert (accuracy["low"], accuracy["value"], accuracy["high"]) == (0.0, 0.5, 1.0)
    assert (accuracy["blind"], accuracy["blind_low"], accuracy["blind_high"]) == (0.0, 0.0, 0.0)
    assert (accuracy["difference_low"], accuracy["difference_high"]) == (0.0, 1.0)


def test_confidence_is_compared_with_what_was_right() -> None:
    entries = [
        said(closed(n, "A"), "A." if n % 2 else "B.", confidence=0.9 if n < 8 else 0.5)
        for n in range(16)
    ]
    told = score(entries)["calibration"]
    assert told["items"] == 16
    assert [each["items"] for each in told["bins"]] == [2] * 8
    # Half of them are right, however sure.
    assert [each["right"] for each in told["bins"]] == [0.5] * 8
    assert [each["confidence"] for each in told["bins"]] == [0.5] * 4 + [0.9] * 4
    assert told["error"] == pytest.approx((0.0 + 0.4) / 2)


# --- retrieval ----------------------------------------------------------------------------------


def vectors(reports: list[str], images: np.ndarray, texts: np.ndarray) -> list[dict[str, Any]]:
    def packed(vector: np.ndarray) -> str:
        return base64.b64encode(vector.astype(np.float32).tobytes()).decode()

    return [
        {"subject": str(n), "patient": str(n), "report": report,
         "image": packed(images[n]), "text": packed(texts[n])}
        for n, report in enumerate(reports)
    ]  # fmt: skip


def test_retrieval_is_scored_in_pools_of_the_published_size() -> None:
    own = np.eye(250)
    entries = vectors([f"report {n}" for n in range(250)], own, own)
    told = score(entries)["tasks"]["retrieval"]
    assert told["primary"] == "image_to_text R@1 of 100"
    one = told["scores"][told["primary"]]
    assert (one["value"], one["items"], one["blind"]) == (1.0, 200, 0.01)
    assert told["scores"]["text_to_image R@10 of 100"]["blind"] == 0.1
    assert not any("500" in name for name in told["scores"])


def test_equal_reports_are_equally_right_but_not_in_the_published_scoring() -> None:
    # Images 0 and 1 have one report; each finds the text of the other.
    swapped = np.eye(3)[[1, 0, 2]]
    entries = vectors(["same", "same", "other"], np.eye(3), swapped)
    told = score(entries)["tasks"]["retrieval"]["scores"]
    assert told["image_to_text R@1 of 3"]["value"] == 1.0
    reference = score(entries, reference=True)["tasks"]["retrieval"]["scores"]
    assert reference["IR R@1 of 3"]["value"] == pytest.approx(1 / 3)


def test_what_was_not_measured_says_why() -> None:
    found = score(OUTLINES)
    assert found["tasks"]["retrieval"]["measured"] is False
    assert found["tasks"]["caption"] == {
        "measured": False, "why": "no question of this task was asked",
    }  # fmt: skip
    assert {name for name, each in found["tasks"].items() if each["measured"]} == {
        "semantic_segmentation"
    }
    told = " ".join(notes({"corpus": 1, "scan": "x"}, found, bert=False))
    for words in ("not for clinical use", "caption was not measured", "BERTScore", "not scanned",
                  "not independent"):  # fmt: skip
        assert words in told
