"""The patients that never were: what is said of them is what is drawn in them."""

import re
from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from model.data.corpus.case import VIEWS, Case, View
from model.data.corpus.findings import KINDS, Finding
from model.data.corpus.organs import ORGANS
from model.data.corpus.shapes import column, ellipsoid, lumpy, slab, tube
from model.data.corpus.space import bend
from model.data.corpus.telling import BOX, NONE, SEG, Turn, named, phrase, report, survey, turns

SEEDS = range(40)
NAMES = {view: f"{view.region} {view.modality}" for view in VIEWS}


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return [Case.make(seed) for seed in SEEDS]


def asked(case: Case) -> list[Turn]:
    return list(turns(case, np.random.default_rng(case.seed)))


def middle(mask: np.ndarray) -> np.ndarray:
    """The centroid of a mask in halves of the volume, -1 to 1."""
    return np.argwhere(mask).mean(axis=0) / (np.array(mask.shape) - 1) * 2 - 1


def test_a_seed_is_one_patient() -> None:
    one, again, other = Case.make(7), Case.make(7), Case.make(8)
    assert one.voxels.tobytes() == again.voxels.tobytes()
    assert (one.findings, asked(one)) == (again.findings, asked(again))
    assert one.voxels.shape != other.voxels.shape or (one.voxels != other.voxels).any()


@pytest.mark.parametrize("view", VIEWS, ids=NAMES.get)
def test_right_organs_are_on_the_right(view: View) -> None:
    for seed in range(4):
        case = Case.make(seed, view=view)
        for name in case.present:
            side = ORGANS[name].side
            if side:
                # Columns run from the patient's right to left.
                assert (middle(case.organ(name))[2] > 0) == (side == "left"), name
        body = case.labels > 0
        for name, axis, sign in (
            ("liver", 2, -1), ("spleen", 2, 1), ("heart", 2, 1), ("spine", 1, 1),
            ("cerebellum", 1, 1), ("cerebellum", 0, -1), ("right eye", 1, -1), ("trachea", 0, 1),
        ):  # fmt: skip
            if name in case.present:
                away = middle(case.organ(name))[axis] - middle(body)[axis]
                assert away * sign > 0, name


def test_findings_lie_where_the_words_say(cases: list[Case]) -> None:
    seen = 0
    for case in cases:
        for each in case.findings:
            mask = case.finding(each)
            if not each.number:
                assert f"{each.side} {each.organ}".strip() in case.missing
                continue
            assert mask.sum() >= 6
            seen += 1
            if each.side:
                place = np.argwhere(mask).mean(axis=0)[2] - np.argwhere(case.labels > 0).mean(0)[2]
                assert (place > 0) == (each.side == "left"), each
            if each.organ == "lung" and each.zone:
                lung = case.organ(f"{each.side} lung") | mask
                above = np.argwhere(mask)[:, 0].mean() > np.median(np.argwhere(lung)[:, 0])
                # A finding that fills the middle may lie on either side of the median.
                apart = abs(np.argwhere(mask)[:, 0].mean() - np.median(np.argwhere(lung)[:, 0]))
                assert above == (each.zone == "upper") or apart < 0.15 * np.ptp(
                    np.argwhere(lung)[:, 0]
                )
    assert seen > len(cases) / 2


def test_what_is_planted_can_be_seen(cases: list[Case]) -> None:
    for case in cases:
        for each in case.findings:
            if each.number and KINDS[each.kind].organs[0] != "spine":
                mask = case.finding(each)
                host = case.labels == np.bincount(case.labels[mask]).argmax()
                # Its rim is blurred with what is around it.
                outside = case.voxels[binary_erosion(host) & (case.planted == 0)]
                if len(outside) < 50 or each.kind == "effusion":
                    continue
                apart = abs(np.median(case.voxels[mask]) - np.median(outside))
                assert apart > 10 if case.modality == "CT" else apart > 0.1 * np.median(outside), (
                    each
                )


def test_every_organ_and_every_kind_of_finding_comes(cases: list[Case]) -> None:
    present = {name for case in cases for name in case.present}
    assert present >= {name for name, each in ORGANS.items() if each.asked}
    planted = {each.kind for case in cases for each in case.findings}
    for seed in range(40, 200):
        if planted == {*KINDS, "absence"}:
            return
        planted |= {each.kind for each in Case.make(seed).findings}
    pytest.fail(f"never planted: {({*KINDS, 'absence'}) - planted}")


@pytest.mark.parametrize("view", VIEWS, ids=NAMES.get)
def test_intensities_are_those_of_the_modality(view: View) -> None:
    case = Case.make(3, view=view)
    air = case.voxels[case.labels == 0]
    if view.modality == "MR":
        assert case.voxels.min() >= 0
        assert np.median(air) < 0.2 * np.median(case.voxels[case.organ("brain")])
        return
    assert -1024 <= case.voxels.min() < -900
    assert case.voxels.max() <= 3071
    assert np.array_equal(case.voxels, np.rint(case.voxels))
    assert abs(np.median(air) + 1000) < 30
    organ, low, high = {"chest": ("left lung", -950, -700), "abdomen": ("liver", 25, 150),
                        "head": ("brain", 20, 50)}[case.region]  # fmt: skip
    assert low < np.median(case.voxels[case.organ(organ)]) < high


def test_contrast_changes_what_it_should() -> None:
    aorta = {}
    for seed in range(60):
        case = Case.make(seed, view=VIEWS[1])
        aorta.setdefault(case.phase, np.median(case.voxels[case.organ("aorta")]))
        if len(aorta) == 3:
            break
    assert aorta["without contrast"] < 80 < aorta["portal venous"] < aorta["arterial"]


def test_a_report_names_every_finding_with_its_side_and_denies_the_rest(cases: list[Case]) -> None:
    for case in cases:
        text, summary = report(case).split(" Impression: ")
        for each in case.findings:
            if each.number:
                assert phrase(each) in text
                assert phrase(each) in summary
            else:
                assert f"The {f'{each.side} {each.organ}'.strip()} is absent" in text
        positive = len(re.findall(r"There is a |is absent", text))
        assert positive == len(case.findings)
        if not case.findings:
            assert summary == "no abnormality."
            assert "There is no" in text


def test_choices_are_four_and_the_letter_is_right(cases: list[Case]) -> None:
    letters = dict.fromkeys("ABCD", 0)
    for seed in range(5):
        for case in cases:
            told = turns(case, np.random.default_rng([seed, case.seed]))
            for turn in [each for each in told if each.task == "closed_vqa"]:
                check_choice(case, turn)
                letters[turn.letter] += 1
    assert min(letters.values()) > 0.75 * max(letters.values())


def check_choice(case: Case, turn: Turn) -> None:
    assert len(set(turn.choices)) == 4, turn
    chosen = turn.choices["ABCD".index(turn.letter)]
    assert turn.answer == f"{turn.letter}. {chosen}"
    assert f"{turn.letter}. {chosen}" in turn.question
    if turn.kind == "region":
        assert chosen == case.region
    if turn.kind == "phase":
        assert chosen == case.phase
    if turn.kind == "abnormality":
        assert (chosen == NONE) == (not any(each.number for each in case.findings))
        assert NONE in turn.choices


def test_what_is_not_there_is_declined_and_has_no_outline(cases: list[Case]) -> None:
    absent = 0
    for case in cases:
        for turn in asked(case):
            if turn.task == "semantic_segmentation":
                assert turn.absent == (SEG not in turn.answer) == (turn.target is None)
                absent += turn.absent
                name = turn.target or re.sub(r"^This image does not show the |\.$", "", turn.answer)
                assert (name in case.present) != turn.absent
    assert absent > 50


def test_every_outline_and_box_has_something_to_be_of(cases: list[Case]) -> None:
    for case in cases:
        for turn in asked(case):
            needs = SEG in turn.answer or BOX in turn.answer or BOX in turn.question
            assert needs == (turn.target is not None), turn
            if isinstance(turn.target, Finding):
                assert case.finding(turn.target).any()
                assert phrase(turn.target) in turn.question + turn.answer
            elif turn.target is not None:
                assert case.organ(turn.target).any()
                assert turn.target in turn.question + turn.answer


def test_a_side_in_the_words_is_the_side_of_the_turn(cases: list[Case]) -> None:
    for case in cases:
        for turn in asked(case):
            if turn.side and turn.task != "closed_vqa":
                other = {"left": "right", "right": "left"}[turn.side]
                words = turn.question + " " + turn.answer
                assert turn.side in words, turn
                assert turn.task == "open_vqa" or other not in words, turn


def test_every_kind_is_asked_for_whether_it_is_there_or_not(cases: list[Case]) -> None:
    """What is asked tells nothing of the answer; with a side it is the side that decides."""
    told: dict[bool, list[bool]] = {False: [], True: []}
    for case in cases:
        plain = []
        for turn in asked(case):
            if turn.kind != "yes_no":
                continue
            word, side = re.fullmatch(
                r"Is there a (.+?)(?: on the (left|right) side)?\?", turn.question
            ).groups()  # type: ignore[union-attr]
            found = [each for each in case.findings if each.number and word in phrase(each)]
            there = any(side in (None, each.side) for each in found)
            assert (turn.answer, turn.absent) == (("Yes.", False) if there else ("No.", True)), turn
            told[side is not None].append(there)
            plain += [] if side else [word]
        assert len(plain) == len(set(plain)) > 0
        for each in case.findings:
            assert not each.number or any(word in phrase(each) for word in plain)
    assert 0.35 < np.mean(told[False]) < 0.65
    assert 0.2 < np.mean(told[True]) < 0.65


def test_a_survey_goes_through_every_kind_with_its_side_in_any_order(cases: list[Case]) -> None:
    orders = set()
    for case in cases:
        turn = survey(case, np.random.default_rng(case.seed))
        told = re.findall(
            r"(\S[^.]*?) is (absent|seen(?: on (?:the (left|right)|both) sides?)?)\.", turn.answer
        )
        assert ". ".join(f"{word} is {verdict}" for word, verdict, _ in told) + "." == turn.answer
        orders.add(tuple(word for word, _, _ in told))
        for word, verdict, side in told:
            found = [
                each
                for each in case.findings
                if each.number and word.lower() in phrase(each).lower()
            ]
            assert (verdict == "absent") == (not found), turn
            sides = {each.side for each in found} - {""}
            assert ({side} == sides) if side else (("both" in verdict) == (len(sides) == 2)), turn
        words = {word for word, verdict, _ in told if verdict != "absent"}
        assert len(words) == len({named(each.kind) for each in case.findings if each.number})
    assert len(orders) > len(VIEWS)


# --- geometry -----------------------------------------------------------------------------------


def test_solids_hold_the_volume_they_should() -> None:
    space = bend(np.random.default_rng(0), (60, 60, 60), (2, 2, 2), (0, 0, 0), sway_mm=0, size=1.0)
    ball = space.draw(ellipsoid((0, 0, 0), (30, 20, 40))).sum() * 8
    assert ball == pytest.approx(4 / 3 * np.pi * 30 * 20 * 40, rel=0.01)
    pipe = space.draw(tube([(-20, 0, 0), (20, 0, 0)], 10)).sum() * 8
    assert pipe == pytest.approx(np.pi * 100 * 40 + 4 / 3 * np.pi * 1000, rel=0.02)
    disc = space.draw(column((0, 0), (20, 30)) & slab(0, -10, 10)).sum() * 8
    assert disc == pytest.approx(np.pi * 600 * 20, rel=0.02)
    smooth = space.draw(lumpy((0, 0, 0), (25, 25, 25), []))
    assert np.array_equal(smooth, space.draw(ellipsoid((0, 0, 0), (25, 25, 25))))


def test_the_box_of_a_solid_cuts_nothing_off() -> None:
    space = bend(
        np.random.default_rng(5), (30, 50, 40), (5, 3, 4), (10, -5, 3), sway_mm=9, size=1.1
    )
    for solid in (ellipsoid((20, 10, -15), (30, 25, 20)), tube([(-40, 0, 0), (30, 20, 30)], 12)):
        whole = solid.inside(*space.at)
        assert whole.any()
        assert np.array_equal(space.draw(solid), whole)


def test_the_deformation_folds_nothing_over() -> None:
    for seed in range(10):
        space = bend(
            np.random.default_rng(seed), (40, 60, 60), (5, 3, 3), (0, 0, 0), sway_mm=9, size=1.0
        )
        for axis in range(3):
            assert (np.diff(space.at[axis], axis=axis) > 0).all()
    assert all(
        one < other for one, other in pairwise(sorted(ORGANS[each].number for each in ORGANS))
    )
