"""Images vary, words do not: no mirror and no turn that would make a word untrue."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model.data.corpus.case import Truth
from model.data.corpus.scene import Scene
from model.data.sample import Sample, Task
from model.errors import ModelError
from model.training.augment import Augment, free_axes

SHAPE = (16, 32, 32)
PLACES = range(60)


def marked() -> Scene:
    """A body with one bright ball high, in front and on the left: no axis looks like its mirror."""
    z, y, x = np.indices(SHAPE)
    body = (((y - 15.5) / 14) ** 2 + ((x - 15.5) / 14) ** 2) < 1
    ball = ((z - 11) / 2) ** 2 + ((y - 10) / 3) ** 2 + ((x - 22) / 3) ** 2 < 1
    image = 0.3 * body + 0.6 * ball
    return Scene(
        Truth(1, "chest", "CT", "arterial", (), (), ()),
        image.astype(np.float32),
        np.where(body, 5, 0).astype(np.uint8),
        ball.astype(np.uint8),
    )


def middle(mask: NDArray[np.generic]) -> NDArray[np.float64]:
    return np.argwhere(mask).mean(axis=0)


def sample(
    question: str = "Outline the liver.", answer: str = "Here: [SEG].", **given: object
) -> Sample:
    values: dict[str, object] = {"image": Path("Axial.npy"), "task": Task.OPEN_VQA} | given
    return Sample(id="list.json#1", question=question, answer=answer, patient="1", **values)  # type: ignore[arg-type]


def varied(words: Sample) -> list[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    scene = marked()
    made = []
    for place in PLACES:
        image, masks = Augment("reference").samples(
            scene.image[None], [scene.planted > 0], [words], np.random.default_rng(place)
        )
        assert masks[0] is not None
        made.append((image, masks[0]))
    return made


@pytest.mark.parametrize("kind", ["mild", "reference"])
def test_a_place_in_the_stream_is_varied_in_one_way(kind: str) -> None:
    scene = marked()
    if kind == "mild":
        one, two, other = (
            Augment(kind)(scene, np.random.default_rng(place)).image for place in (7, 7, 8)
        )
    else:
        one, two, other = (
            Augment(kind).samples(scene.image[None], [], [sample()], np.random.default_rng(place))[
                0
            ]
            for place in (7, 7, 8)
        )
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_mild_never_mirrors_and_never_turns() -> None:
    scene = marked()
    for place in PLACES:
        moved = Augment("mild")(scene, np.random.default_rng(place))
        away = middle(moved.planted) - middle(moved.labels > 0)
        assert (away * [1, -1, 1] > 0).all(), f"place {place}: the ball is at {away}"
        assert moved.image.min() >= 0
        assert moved.image.max() <= 1


def test_organs_and_findings_move_with_the_image() -> None:
    scene = marked()
    moves = set()
    for place in PLACES:
        moved = Augment("mild")(scene, np.random.default_rng(place))
        inside = moved.image[moved.planted > 0].mean()
        around = moved.image[(moved.labels > 0) & (moved.planted == 0)].mean()
        nothing = moved.image[moved.labels == 0].mean()
        assert inside > 1.5 * around > 1.5 * 1.5 * nothing
        moves.add(tuple(middle(moved.planted).round(1)))
    assert len(moves) > 20


def test_reference_turns_and_mirrors_where_words_allow_it_and_masks_follow() -> None:
    made = varied(sample())
    assert len({tuple(middle(mask).round(1)) for _, mask in made}) > 4
    for image, mask in made:
        bright = image[0] > (image[0].min() + image[0].max()) / 2
        assert np.array_equal(bright, mask)


@pytest.mark.parametrize(
    "words",
    [
        sample(answer="The left kidney: [SEG]."),
        sample(answer="A midline shift is present."),
        sample(side="right"),
        sample(box=(0.1, 0.1, 0.1, 0.5, 0.5, 0.5)),
    ],
)
def test_under_a_side_or_a_box_nothing_moves(words: Sample) -> None:
    scene = marked()
    for image, mask in varied(words):
        assert np.array_equal(mask, scene.planted > 0)
        assert np.corrcoef(image.ravel(), scene.image.ravel())[0, 1] > 0.999


@pytest.mark.parametrize(
    ("answer", "file", "free"),
    [
        ("The liver is enlarged.", "Axial.npy", (0, 1, 2)),
        ("A nodule of the upper lobe.", "Axial_C__portal.npy", (1, 2)),
        ("Apical scarring, and basal atelectasis.", "axial.npy", (1, 2)),
        ("Fluid in the posterior recess.", "Axial.npy", (0, 2)),
        ("In the anterior part of the superior segment.", "Axial.npy", (2,)),
        ("A nodule of the upper lobe.", "Coronal.npy", (0, 2)),
        ("Fluid in the posterior recess.", "Coronal.npy", (1, 2)),
        ("Fluid in the posterior recess.", "Sagittal_bone.npy", (0, 1)),
        ("A nodule of the upper lobe.", "image.npy", ()),
        ("The liver is enlarged.", "image.npy", (0, 1, 2)),
        ("The left kidney.", "Axial.npy", ()),
    ],
)
def test_words_of_place_hold_the_axis_they_speak_of(
    answer: str, file: str, free: tuple[int, ...]
) -> None:
    assert free_axes([sample(answer=answer, image=Path(file))]) == free


def test_one_question_of_several_behind_an_image_is_enough_to_hold_it() -> None:
    assert free_axes([sample(), sample(question="Is the upper lobe clear?")]) == (1, 2)
    assert free_axes([sample(), sample(side="left")]) == ()


def test_an_axis_that_is_held_keeps_its_direction() -> None:
    where = marked().planted
    for _, mask in varied(sample(answer="In the upper part, posterior: [SEG].")):
        assert middle(mask)[:2] == pytest.approx(middle(where)[:2])


@pytest.mark.parametrize(
    "call",
    [
        lambda: Augment("reference")(marked(), np.random.default_rng(0)),
        lambda: Augment("mild").samples(
            marked().image[None], [], [sample()], np.random.default_rng(0)
        ),
    ],
)
def test_a_kind_is_not_taken_for_another(call: Callable[[], object]) -> None:
    with pytest.raises(ModelError, match="vary none or"):
        call()


def test_none_changes_nothing() -> None:
    scene = marked()
    assert Augment()(scene, np.random.default_rng(0)) is scene
    image, masks = Augment().samples(
        scene.image[None], [None], [sample()], np.random.default_rng(0)
    )
    assert np.array_equal(image, scene.image[None])
    assert masks == [None]
