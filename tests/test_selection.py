"""Which series is read, as a table: what speaks for one, what rules one out, and what is said."""

from dataclasses import replace
from typing import Any

import pytest

from dicom_node import serve
from dicom_node.config import Config
from dicom_node.routing import selection
from dicom_node.routing.expression import parse
from dicom_node.routing.selection import FACTS, Preference, Scored, Wish, phase, select, values_of
from dicom_node.routing.series import SeriesSummary

RULES = serve.rules(serve.protocols(Config()))
CHEST, ABDOMEN, BRAIN = (
    next(each for each in RULES if each.protocol == name)
    for name in ("ct_chest", "ct_abdomen", "mr_brain")
)
CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"


def ct(uid: str = "1", **changed: Any) -> SeriesSummary:
    plain = SeriesSummary(
        uid,
        "CT",
        CT,
        description="Thorax",
        body_part="CHEST",
        image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
        sop_uids=tuple(f"{uid}.{each}" for each in range(100)),
        slices=100,
        positions=100,
        slice_thickness_mm=3.0,
        axial=True,
        plane="axial",
        coverage_mm=300.0,
        kernel="B30f",
    )
    changed.setdefault("positions", changed.get("slices", 100))
    return replace(plain, **changed)


def mr(uid: str = "1", **changed: Any) -> SeriesSummary:
    return ct(uid, **{"modality": "MR", "sop_class_uid": MR, "body_part": "BRAIN", "kernel": "",
                      "description": "T1", **changed})  # fmt: skip


def of(uid: str, chosen: tuple[Scored, ...]) -> Scored:
    return next(each for each in chosen if each.series_uid == uid)


def test_a_series_tells_each_of_its_points() -> None:
    (only,) = select([ct()], Wish(CHEST), RULES)
    assert (only.chosen, only.score) == (True, 30 + 20 + 15 + 8 + 12 + 2 + 10 + 2)
    assert only.reason == (
        "99 points: Body Part Examined is 'CHEST' +30, original +20, axial +15, 3 mm +8,"
        " soft kernel +12, phase unsaid +2, covers 300 mm +10, 100 slices +2"
    )


@pytest.mark.parametrize(
    ("worse", "said"),
    [
        ({"body_part": ""}, "the series is called 'Thorax' +25"),
        ({"body_part": "", "description": "x", "study_description": "Chest"}, "study is called"),
        ({"image_type": ("DERIVED", "SECONDARY")}, "derived +0"),
        ({"axial": False, "plane": "coronal"}, "coronal +0"),
        ({"axial": None, "plane": ""}, "orientation unknown +5"),
        ({"slice_thickness_mm": 8.0}, "8 mm +1"),
        ({"slice_thickness_mm": None}, "slice thickness unsaid +3"),
        ({"kernel": "B70f"}, "sharp kernel +0"),
        ({"coverage_mm": 60.0}, "covers 60 mm +2"),
        ({"slices": 20}, "20 slices +0"),
    ],
)
def test_what_speaks_less_for_a_series(worse: dict[str, Any], said: str) -> None:
    chosen = select([ct("1", **worse), ct("2")], Wish(CHEST), RULES)
    assert of("2", chosen).chosen
    assert not of("1", chosen).chosen
    assert said in of("1", chosen).reason
    assert of("1", chosen).score < of("2", chosen).score


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"description": "Thorax Topogram"}, "a localizer"),
        ({"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")}, "a localizer"),
        ({"description": "Thorax MPR cor"}, "reformatted or projected"),
        ({"image_type": ("DERIVED", "SECONDARY", "MIP")}, "reformatted or projected"),
        ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.7"}, "not a CT or MR image"),
        ({"unreadable": "ValueError"}, "cannot be read"),
        ({"positions": 50}, "several phases, echoes or b-values"),
        ({"positions": None}, "do not say where"),
        ({"slices": 5}, "5 slices, ct_chest needs 16"),
        ({"body_part": "ABDOMEN", "description": "Abdomen"}, "another region than ct_chest"),
        ({"body_part": "KNEE", "description": "x"}, "another region than ct_chest: limb"),
        ({"modality": "MR", "sop_class_uid": MR}, "modality MR, ct_chest is for CT"),
    ],
)
def test_what_rules_a_series_out(changed: dict[str, Any], said: str) -> None:
    chosen = select([ct("1", **changed)], Wish(CHEST), RULES)
    assert (chosen[0].chosen, chosen[0].score) == (False, None)
    assert said in chosen[0].reason


def test_a_map_of_an_mr_is_worth_less_than_a_plain_sequence() -> None:
    chosen = select([mr("1", description="ADC map"), mr("2")], Wish(BRAIN), RULES)
    assert of("2", chosen).chosen
    assert "a map +0" in of("1", chosen).reason
    assert "plain sequence +12" in of("2", chosen).reason


def test_a_scan_of_two_regions_is_read_for_each_of_them() -> None:
    both = ct(body_part="CHESTABDOMEN", description="Thorax Abdomen")
    for protocol in (CHEST, ABDOMEN):
        assert select([both], Wish(protocol, must_name_region=True), RULES)[0].chosen


def test_a_series_that_names_no_region_is_read_unless_it_must() -> None:
    unnamed = ct(body_part="", description="5.0 x 5.0")
    assert select([unnamed], Wish(CHEST), RULES)[0].chosen
    (refused,) = select([unnamed], Wish(CHEST, must_name_region=True), RULES)
    assert refused.reason == "nothing names the region of ct_chest"


def test_a_rule_may_take_any_region_and_fewer_slices() -> None:
    knee = ct(body_part="KNEE", description="Knee", slices=4)
    wish = Wish(CHEST, any_region=True, minimum_slices=4)
    assert select([knee], wish, RULES)[0].chosen


def test_a_rule_takes_only_some_series_and_prefers_others() -> None:
    wish = Wish(
        CHEST,
        only=parse("coverage_mm >= 100", FACTS),
        prefer=(
            Preference(parse('contrast == "venous"', FACTS)),
            Preference(parse("sharp", FACTS), -50),
        ),
    )
    series = [
        ct("1"),
        ct("2", description="Thorax venös", slice_thickness_mm=8.0),
        ct("3", coverage_mm=50.0),
        ct("4", kernel="B70f"),
    ]
    chosen = select(series, wish, RULES)
    assert of("2", chosen).chosen
    assert 'preferred: contrast == "venous" +25' in of("2", chosen).reason
    assert "takes no such series: coverage_mm >= 100 is not so" in of("3", chosen).reason
    assert "preferred: sharp -50" in of("4", chosen).reason


def test_equal_series_are_chosen_between_by_length_thickness_and_uid() -> None:
    assert of("2", select([ct("1"), ct("2", slices=110)], Wish(CHEST), RULES)).chosen
    assert of("1", select([ct("2"), ct("1")], Wish(CHEST), RULES)).chosen


@pytest.mark.parametrize(
    ("description", "agent", "expected"),
    [
        ("Abdomen nativ", "", "plain"),
        ("Abdomen without contrast", "", "plain"),
        ("Abdomen portalvenös", "IOHEXOL", "venous"),
        ("Abd art 2.0", "", "arterial"),
        ("Delayed 10 min", "", "delayed"),
        ("Thorax", "IOHEXOL", "contrast"),
        ("Thorax mit KM", "", "contrast"),
        ("Ventricles", "", ""),
        ("Heart cartoon", "", ""),
        ("Thorax", "", ""),
    ],
)
def test_the_phase_is_what_the_series_is_called(
    description: str, agent: str, expected: str
) -> None:
    assert phase(ct(description=description, contrast_agent=agent)) == expected


def test_facts_can_be_asked_for_beside_attributes() -> None:
    asked = values_of(ct(values={"StationName": ("ER1",)}, body_part="CHESTABDOMEN"))
    assert asked("StationName") == ("ER1",)
    assert asked("plane") == ("axial",)
    assert asked("slices") == (100.0,)
    assert asked("region") == ["abdomen", "chest"]
    assert asked("sharp") == ()
    assert {name for name in FACTS if asked(name)} == {*FACTS} - {"contrast", "sharp"}


def test_every_fact_is_one_that_a_series_has() -> None:
    assert set(selection._facts(ct())) | {"region"} == {*FACTS}
