"""M3D-CLIP loaded: reports to ids as BERT reads them, images and reports to unit vectors."""

from pathlib import Path

import handful
import pytest
import torch

from model import clip
from model.errors import ModelError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return handful.clip(tmp_path_factory.mktemp("clip") / "clip")


def test_images_and_reports_become_unit_vectors_of_one_space(folder: Path) -> None:
    model = clip.load(folder)
    images = model.embed_images(torch.rand(3, 1, *handful.GRID))
    texts = model.embed_texts(["Head CT.", "Chest CT. There is no nodule."])
    assert images.shape == (3, handful.WIDTH)
    assert texts.shape == (2, handful.WIDTH)
    for each in (images, texts):
        assert each.dtype == torch.float32
        torch.testing.assert_close(each.norm(dim=1), torch.ones(len(each)))


def test_padding_changes_nothing_of_a_report(folder: Path) -> None:
    model = clip.load(folder)
    short, long = "Head CT.", "Chest CT. There is no nodule or mass in the lungs."
    alone, together = model.embed_texts([short]), model.embed_texts([short, long])
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-5)


def test_words_are_those_of_the_vocabulary_between_cls_and_sep(folder: Path) -> None:
    words = (folder / "vocab.txt").read_text().splitlines()
    ids, mask = clip.Words.read(folder)(["Chest CT.", "CT"])
    names = [[words[each] for each in row] for row in ids.tolist()]
    assert names[0] == ["[CLS]", "chest", "ct", ".", "[SEP]"]
    assert names[1] == ["[CLS]", "ct", "[SEP]", "[PAD]", "[PAD]"]
    assert mask.tolist() == [[1] * 5, [1, 1, 1, 0, 0]]


def test_a_report_that_is_too_long_is_cut(folder: Path) -> None:
    ids, _ = clip.Words.read(folder)(["chest " * 900])
    assert ids.shape == (1, clip.MAXIMUM_LENGTH)
    assert clip.load(folder).embed_texts(["chest " * 900]).isfinite().all()


def test_missing_words_or_another_network_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"vocab.txt is missing"):
        clip.Words.read(tmp_path)
    lamed = handful.lamed(tmp_path / "lamed")
    with pytest.raises(ModelError, match="expected an M3D-CLIP, got lamed_phi3"):
        clip.load(lamed)
