"""What a step looks at: the same example at the same place, its masks where its words are."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import handful
import numpy as np
import pytest

from model import small
from model.data.corpus import telling
from model.data.corpus.scene import Pool, Scene
from model.data.sample import DataError, Sample, Task
from model.data.tokens import IGNORED, Layout
from model.errors import ModelError
from model.tokenizer import Tokenizer
from model.training import examples
from model.training.augment import Augment
from model.training.examples import Example, Patients, Samples, Stream

LAYOUT = Layout(image_tokens=8, eos_id=2, pad_id=2)


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return small.tokenizer()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return Pool(tmp_path_factory.mktemp("pool"), handful.GRID)


def patients(pool: Pool, words: Tokenizer | None, **given: object) -> Patients:
    values: dict[str, object] = {"tokenizer": words, "layout": LAYOUT, "masks": 2} | given
    return Patients([(pool, range(3))], Augment("mild"), **values)  # type: ignore[arg-type]


def same(one: Example, two: Example) -> bool:
    return (
        np.array_equal(one.image, two.image)
        and one.tokens == two.tokens
        and one.report == two.report
        and all(
            np.array_equal(first, second) if first is not None else second is None
            for first, second in zip(one.masks, two.masks, strict=True)
        )
    )


def test_a_place_is_one_example_for_ever(pool: Pool, words: Tokenizer) -> None:
    stream = Stream(patients(pool, words), 9, seed=5)
    again = Stream(patients(pool, words), 99, seed=5)
    for place in (0, 4, 8, 1):
        assert same(stream[place], again[place])
    other = Stream(patients(pool, words), 9, seed=6)
    assert not all(same(stream[place], other[place]) for place in range(3))


def test_every_pass_sees_every_patient_once_in_an_order_of_its_own(pool: Pool) -> None:
    stream = Stream(patients(pool, None), 30)
    reports = [stream[place].report for place in range(30)]
    passes = [reports[first : first + 3] for first in range(0, 30, 3)]
    assert all(sorted(each) == sorted(passes[0]) for each in passes)
    assert len(set(passes[0])) == 3
    assert len({tuple(each) for each in passes}) > 1


def test_no_more_questions_and_masks_are_asked_than_wanted(pool: Pool, words: Tokenizer) -> None:
    seg = words.added["[SEG]"]
    for place in range(6):
        found = Stream(patients(pool, words, questions=12, masks=2), 6)[place]
        assert 0 < len(found.tokens) == len(found.masks) <= 12
        drawn = [
            (tokens, mask)
            for tokens, mask in zip(found.tokens, found.masks, strict=True)
            if mask is not None
        ]
        assert len(drawn) <= 2
        for tokens, mask in drawn:
            assert seg in tokens.input_ids
            assert np.count_nonzero(mask) >= examples.SMALLEST


def test_in_a_share_of_the_images_is_anything_outlined(pool: Pool, words: Tokenizer) -> None:
    stream = Stream(patients(pool, words, mask_share=0.4), 40)
    drawn = [any(mask is not None for mask in stream[place].masks) for place in range(40)]
    assert 8 <= sum(drawn) <= 24
    assert all(any(m is not None for m in Stream(patients(pool, words), 3)[i].masks)
               for i in range(3))  # fmt: skip


def test_what_decides_is_asked_first_and_what_is_elsewhere_last(
    pool: Pool, words: Tokenizer
) -> None:
    source, asked, there = patients(pool, words, questions=10), Counter[str](), Counter[str]()
    for number in range(3):
        scene = pool[number]
        for seed in range(60):
            random = np.random.default_rng(seed)
            asked.update(_about(each, scene) for each, _ in source._turns(scene, random))
            there.update(_about(each, scene) for each in telling.turns(scene.truth, random))
    share = {each: asked[each] / there[each] for each in there}
    assert share["caption"] > share["closed_vqa"] > share["semantic_segmentation"]
    assert share["semantic_segmentation"] > 2 * share[telling.ELSEWHERE] > 0


def _about(turn: telling.Turn, scene: Scene) -> str:
    absence = telling.absence(turn, scene.truth.region)
    return absence if absence == telling.ELSEWHERE else turn.task


def test_only_the_tasks_that_are_wanted_are_asked(pool: Pool, words: Tokenizer) -> None:
    wanted = frozenset({Task.CLOSED_VQA})
    found = Stream(patients(pool, words, tasks=wanted), 3)[0]
    assert found.tokens
    for tokens in found.tokens:
        read = words.decode([each for each in tokens.input_ids if each])
        said = words.decode([each for each in tokens.labels if each != IGNORED]).strip()
        assert "Choices: A." in read
        assert f". {said}" in read.partition("Choices:")[2]
    with pytest.raises(ModelError, match=r"patient \d: expected a question of .*, got none"):
        Stream(patients(pool, words, tasks=frozenset()), 3)[0]


def test_only_the_kinds_that_are_wanted_are_asked(pool: Pool, words: Tokenizer) -> None:
    found = Stream(patients(pool, words, kinds=frozenset({"yes_no"})), 3)[0]
    answers = {
        words.decode([each for each in tokens.labels if each > 2]).strip()
        for tokens in found.tokens
    }
    assert answers
    assert answers <= {"Yes.", "No."}
    with pytest.raises(ModelError, match=r"expected a question of .*, riddle, got none"):
        Stream(patients(pool, words, kinds=frozenset({"riddle"})), 3)[0]


def test_surveys_come_besides_the_questions(pool: Pool, words: Tokenizer) -> None:
    only = frozenset({"yes_no"})
    plain, more = (
        Stream(patients(pool, words, kinds=only, questions=2, surveys=count), 3)[1]
        for count in (0, 2)
    )
    assert len(more.tokens) == len(more.masks) == len(plain.tokens) + 2
    for tokens in more.tokens[-2:]:
        assert "Go through the findings" in words.decode(tokens.input_ids)


def test_what_each_image_token_shows_is_told_block_by_block() -> None:
    """Organs where they fill enough of a block, findings where there are a few voxels of them."""
    found = np.zeros((4, 8, 9), np.uint8)
    found[:2, :4, 4:8] = 3  # the whole of a block
    found[2, 0, 0] = 5  # one voxel of 32: less than 5 %
    found[3, 4, :3] = examples.FIRST_KIND
    found[:, :, 8] = 7  # beyond the last whole block
    told = examples.shown(found, (2, 4, 4))
    assert told.shape == (8, examples.CLASSES)
    shown = {(int(block), int(number)) for block, number in np.argwhere(told)}
    assert shown == {(1, 3), (6, examples.FIRST_KIND)}


def test_blocks_are_named_after_the_image_has_moved(pool: Pool, words: Tokenizer) -> None:
    size = tuple(each // 2 for each in handful.GRID)
    found = Stream(patients(pool, words, blocks=size), 3)
    for place in range(3):
        named = found[place].named
        assert named is not None
        assert named.shape == (8, examples.CLASSES)
        assert named.any()
    assert Stream(patients(pool, words), 3)[0].named is None
    plain = replace(patients(pool, words, blocks=size), augment=Augment("none"))
    still = [plain.example(0, np.random.default_rng(seed)).named for seed in range(2)]
    assert np.array_equal(*still)


def test_every_class_but_nothing_has_words() -> None:
    told = examples.names()
    assert len(told) == examples.CLASSES
    assert [number for number, name in enumerate(told) if not name] == [0]


def test_a_seg_that_the_length_cuts_off_is_an_error_that_says_so(
    pool: Pool, words: Tokenizer
) -> None:
    short = replace(LAYOUT, max_length=20)
    wanted = frozenset({Task.SEMANTIC_SEGMENTATION})
    stream = Stream(patients(pool, words, layout=short, tasks=wanted), 3)
    with pytest.raises(DataError, match=r"corpus/.*within 20 tokens|fewer than 20 tokens"):
        list(map(stream.__getitem__, range(3)))


def test_a_box_is_of_the_image_after_it_has_moved(pool: Pool) -> None:
    """The numbers in the answer are measured again on the mask of that very place."""
    scene = pool[0]
    moved = Augment("mild")(scene, np.random.default_rng(3))
    turn = next(
        each
        for each in examples.telling.turns(scene.truth, np.random.default_rng(0))
        if each.task == "rec" and not each.absent
    )
    before, after = (examples.sample_of(each, turn) for each in (scene, moved))
    assert before.answer != after.answer
    places = np.argwhere(moved.mask(turn.target))
    told = [*(places.min(axis=0) / handful.GRID), *(places.max(axis=0) / handful.GRID)]
    assert after.box == pytest.approx(told)
    assert ", ".join(f"{each:.3f}" for each in told) in after.answer


def test_a_choice_is_given_by_its_words(pool: Pool) -> None:
    scene = pool[0]
    turns = examples.telling.turns(scene.truth, np.random.default_rng(0))
    closed = [each for each in turns if each.task == "closed_vqa"]
    assert len(closed) > 1
    for turn in closed:
        said = examples.sample_of(scene, turn).answer
        assert said == turn.choices["ABCD".index(turn.letter)]
        assert turn.answer == f"{turn.letter}. {said}"


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    scene = handful.scenes((3,))[0]
    image = handful.saved(tmp_path / "image.npy", scene.image[None])
    made = []
    for number, organ in enumerate(("brain", "skull", "cerebellum"), 1):
        mask = handful.saved(tmp_path / f"masks/mask_{number}.npy", scene.mask(organ)[None])
        question, answer = f"Outline the {organ}.", f"The {organ}: [SEG]."
        task = Task.SEMANTIC_SEGMENTATION
        made.append(Sample(f"list.json#{number}", task, image, question, answer, "3", mask=mask))
    return made


def test_samples_of_one_image_stand_behind_it_together(
    samples: list[Sample], words: Tokenizer
) -> None:
    source = Samples(samples, words, LAYOUT, questions=2, masks=1)
    assert len(source) == 2
    counts = [len(source.example(each, np.random.default_rng(0)).tokens) for each in (0, 1)]
    assert counts == [2, 1]


def test_of_samples_too_no_more_draw_than_wanted(samples: list[Sample], words: Tokenizer) -> None:
    source = Samples(samples, words, LAYOUT, questions=3, masks=1)
    drawn = set()
    for seed in range(12):
        masks = source.example(0, np.random.default_rng(seed)).masks
        assert sum(each is not None for each in masks) == 1
        drawn |= {index for index, each in enumerate(masks) if each is not None}
    assert drawn == {0, 1, 2}


def test_an_image_or_a_mask_of_another_shape_is_an_error_of_its_row(
    samples: list[Sample], words: Tokenizer, tmp_path: Path
) -> None:
    source = Samples(samples[:1], words, LAYOUT, masks=1, grid=(32, 256, 256))
    with pytest.raises(DataError, match=r"list.json, row 1: expected an image \(1, 32, 256, 256\)"):
        source.example(0, np.random.default_rng(0))
    handful.saved(tmp_path / "masks/mask_1.npy", np.ones((1, 4, 4, 4), bool))
    source = Samples(samples[:1], words, LAYOUT, masks=1, grid=handful.GRID)
    with pytest.raises(DataError, match=r"list.json, row 1: expected a mask \(16, 32, 32\)"):
        source.example(0, np.random.default_rng(0))


def test_a_mask_whose_answer_has_no_seg_is_an_error_of_its_row(
    samples: list[Sample], words: Tokenizer
) -> None:
    source = Samples([replace(samples[0], answer="It is there.")], words, LAYOUT, masks=1)
    with pytest.raises(DataError, match=r"row 1: expected \[SEG\] in the answer"):
        source.example(0, np.random.default_rng(0))


def test_rare_classes_weigh_more_and_the_mean_voxel_weighs_one(pool: Pool) -> None:
    source = patients(pool, None)
    weights = examples.weights(source)
    counts = np.zeros(examples.CLASSES)
    for seed in range(3):
        counts += np.bincount(examples.classes(pool[seed]).ravel(), minlength=examples.CLASSES)
    order = np.argsort(counts)
    assert (np.diff(weights[order]) <= 0).all()
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1, rel=0.05)
