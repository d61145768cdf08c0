import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import (
    CTImageStorage,
    MRImageStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    XRayRadiationDoseSRStorage,
)

from dicom_node import serve
from dicom_node.config import Config
from dicom_node.routing import Choice, NoFit, Route, Rule, route
from dicom_node.routing.routing import SeriesSummary

RULES = serve.rules(serve.protocols(Config()))
ORIGINAL = ("ORIGINAL", "PRIMARY", "AXIAL")
# What a site might add: a rule that knows one word, and a second one for the same region.
LIVER = Rule("liver", "CT", ("LIVER",), ("liver", "leber"), 30)
CHEST_TOO = Rule("chest_too", "CT", ("CHEST",), ("thorax",), 3)
SEQUENCE = Rule("sequence", "MR", (), ("T1",), 3)


def ct(description: str = "", body_part: str = "", **said: Any) -> SeriesSummary:
    number = {"slices": 60, "positions": said.get("slices", 60)} | said
    return SeriesSummary(
        **{"uid": "1.1", "modality": "CT", "sop_class_uid": CTImageStorage, "axial": True}
        | {"description": description, "body_part": body_part, "image_type": ORIGINAL}
        | number
    )


def mr(description: str = "", body_part: str = "", **said: Any) -> SeriesSummary:
    return ct(description, body_part, **{"modality": "MR", "sop_class_uid": MRImageStorage} | said)


def refused(*series: SeriesSummary, **options: Any) -> tuple[Choice, ...]:
    with pytest.raises(NoFit) as error:
        route(series, **{"rules": RULES} | options)
    choices = error.value.choices
    assert not any(each.chosen for each in choices)
    assert all(each.reason in str(error.value) for each in choices)
    return choices


def reason(*series: SeriesSummary, **options: Any) -> str:
    return refused(*series, **options)[0].reason


def chosen(found: Route) -> Choice:
    (choice,) = [each for each in found.choices if each.chosen]
    assert choice.series_uid == found.series_uid
    return choice


def best(*series: SeriesSummary) -> str:
    """Give the description of the series that is read."""
    found = route(series, RULES)
    assert len(found.choices) == len(series)
    assert all(each.reason for each in found.choices)
    return chosen(found).description


def numbered(*series: SeriesSummary) -> list[SeriesSummary]:
    return [replace(each, uid=f"1.{number}") for number, each in enumerate(series, 1)]


# --- which protocol: what the body part, the series and the study say ---------------------------

CALLED = {
    "ct_chest": """CT CHEST | Thorax 5.0 B30f | Lung_recon_1mm | CT_Thorax_w/o | TDM thoracique |
        TC de tórax sin contraste | TORAX | Torace HR | Органы грудной клетки | ОГК | Лёгкие 1.0 |
        легкие | 胸部平扫 | 胸部単純CT | CHEST_TO_PELVIS""",
    "ct_abdomen": """Abdomen 3mm | Oberbauch nativ | TDM abdominale | Hígado trifásico |
        Брюшная полость | 上腹部增强 | Abdomen/Becken pv""",
}


@pytest.mark.parametrize(
    ("text", "protocol"),
    [(text, name) for name, texts in CALLED.items() for text in re.split(r"\s*\|\s*", texts)],
)
def test_a_description_in_any_of_the_languages_finds_its_protocol(text: str, protocol: str) -> None:
    assert route([ct(text)], RULES).protocol == protocol
    assert route([ct(text.upper())], RULES).protocol == protocol
    by_study = route([ct(study_description=text)], RULES)
    assert by_study.protocol == protocol
    assert by_study.reason.startswith(f"{protocol}: the study is called {text!r}")
    assert route([ct(protocol_name=text)], RULES).protocol == protocol


@pytest.mark.parametrize(
    "text", ["Kopf nativ", "T1 MPRAGE Head", "Schädel", "IRM cérébrale tête", "ГМ", "мозг"]
)
def test_a_brain_is_found_in_mr_only(text: str) -> None:
    assert route([mr(text)], RULES).protocol == "mr_brain"
    assert "no protocol is for its region" in reason(ct(text))


@pytest.mark.parametrize(
    ("protocol", "body_part"),
    [
        *(("ct_chest", each) for each in ("CHEST", "chest", "THORAX", "NECKCHEST", "LUNG")),
        *(("ct_abdomen", each) for each in ("ABDOMEN", "ABDOMENPELVIS", "LIVER")),
        *(("mr_brain", each) for each in ("BRAIN", "HEAD")),
    ],
)
def test_body_part_examined_finds_its_protocol(protocol: str, body_part: str) -> None:
    found = route([(ct if protocol.startswith("ct") else mr)(body_part=body_part)], RULES)
    assert found.protocol == protocol
    assert found.reason == f"{protocol}: Body Part Examined is {body_part!r}"


@pytest.mark.parametrize("body_part", ["CHESTABDOMEN", "CHESTABDPELVIS", "NECKCHESTABDPELV"])
def test_of_two_regions_the_first_rule_is_taken_and_the_other_told(body_part: str) -> None:
    found = route([ct(body_part=body_part)], RULES)
    assert found.protocol == "ct_abdomen"
    assert "ct_chest would fit too" in found.reason
    assert route([ct(body_part=body_part)], RULES[::-1]).protocol == "ct_chest"


def test_of_two_regions_the_series_is_the_one_that_it_is_called() -> None:
    assert route([ct("Thorax 5mm", "CHESTABDPELVIS")], RULES).protocol == "ct_chest"
    assert route([ct("Abdomen 5mm", "CHESTABDPELVIS")], RULES).protocol == "ct_abdomen"
    thorax, abdomen = numbered(ct("Thorax", "CHESTABDPELVIS"), ct("Abdomen", "CHESTABDPELVIS"))
    found = route([thorax, abdomen], RULES)
    assert (found.protocol, found.series_uid) == ("ct_abdomen", abdomen.uid)
    assert found.choices[0].reason == "another region, ct_chest"


def test_the_series_is_believed_before_the_study() -> None:
    neck, chest = numbered(
        ct("Neck 2mm", study_description="CT neck and chest", slices=300),
        ct("Chest 5mm", study_description="CT neck and chest"),
    )
    found = route([neck, chest], RULES)
    assert found.series_uid == chest.uid
    assert "region" in found.choices[0].reason
    assert "no protocol is for its region" in reason(neck)


@pytest.mark.parametrize(
    "series",
    [
        ct("1.0 B30f", "HEAD", study_description="CT head and chest"),
        ct("Kopf 5mm", study_description="CT Kopf/Hals/Thorax"),
        ct("头部平扫", study_description="胸部"),
        ct("Шея", study_description="шея и грудная клетка"),
        ct("Thoracic spine 2mm", study_description="CT chest"),
        ct("BWS", study_description="CT Thorax"),
        ct("Грудной отдел позвоночника"),
        ct("胸椎", study_description="胸部"),
        ct("Knie links", study_description="CT Abdomen, Knie"),
        ct(study_description="CT head, abdomen"),
        ct("Herz 0.6", study_description="CT Thorax"),
        mr("femoral head", "HIP"),
        mr("COR T1 femoral head"),
        mr("T2 SAG", "CSPINE", study_description="MR brain and spine"),
    ],
    ids=lambda each: each.description or each.study_description,
)
def test_a_series_of_another_region_is_not_read_because_the_study_names_ours(
    series: SeriesSummary,
) -> None:
    assert "no protocol is for its region" in reason(series)


@pytest.mark.parametrize(
    ("body_part", "description"),
    [
        *(("CHEST", each) for each in ("Abdomen 5mm", "Neck 2mm", "Thorax Wirbelsäule")),
        *((each, "Thorax 5mm") for each in ("ABDOMEN", "HEAD")),
        *(("CHESTABDPELVIS", "Becken"), ("PELVIS", "Abdomen"), ("KNEE", "Lung HR")),
    ],
)
def test_a_series_that_contradicts_itself_is_refused(body_part: str, description: str) -> None:
    told = f"Body Part Examined is {body_part!r}, yet the series is called {description!r}"
    assert reason(ct(description, body_part)) == told
    assert reason(ct(description, body_part), fallback="ct_chest") == told


@pytest.mark.parametrize(
    ("body_part", "description", "protocol"),
    [
        ("PELVIS", "Abdomen/Becken 3mm", "ct_abdomen"),
        ("NECK", "Neck Chest 3mm", "ct_chest"),
        *(("CHEST", each, "ct_chest") for each in ("Neck Chest Abdomen", "1.0 B30f ax")),
        *((each, "Thorax 5mm", "ct_chest") for each in ("WHOLEBODY", "BRUST")),
    ],
)
def test_two_words_for_one_scan_are_no_contradiction(
    body_part: str, description: str, protocol: str
) -> None:
    assert route([ct(description, body_part)], RULES).protocol == protocol


def test_a_rule_of_one_word_reads_no_other_region() -> None:
    assert route([ct("Leber art", slices=40)], [LIVER]).protocol == "liver"
    study = "CT chest and liver"
    assert "region" in reason(ct("Chest 5mm", study_description=study), rules=[LIVER])
    assert route([ct("1.0 B30f", study_description=study)], [LIVER]).protocol == "liver"
    assert route([mr("T1 SAG", "BRAIN")], [SEQUENCE]).protocol == "sequence"


def test_of_two_rules_for_one_region_the_earlier_is_taken() -> None:
    chest = next(each for each in RULES if each.protocol == "ct_chest")
    series = [ct("CHEST", slices=20)]
    assert route(series, [chest, CHEST_TOO]).protocol == "ct_chest"
    assert route(series, [CHEST_TOO, chest]).protocol == "chest_too"
    assert route([ct("CHEST", "CHEST", slices=5)], [chest, CHEST_TOO]).protocol == "chest_too"


# --- which series: refused ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")}, "a localizer (localizer)"),
        ({"description": "Topogramm Thorax"}, "a localizer (topogramm)"),
        ({"description": "CT Chest SCOUT"}, "a localizer (scout)"),
        ({"description": "Surview Thorax"}, "a localizer (surview)"),
        ({"description": "SmartSurvey Thorax"}, "a localizer (survey)"),
        ({"description": "Thorax Übersicht"}, "a localizer (ubersicht)"),
        ({"description": "胸部定位像"}, "a localizer (定位)"),
        ({"description": "Топограмма ОГК"}, "a localizer (топограмма)"),
        ({"description": "Thorax MIP"}, "reformatted or projected (mip)"),
        ({"description": "Thorax MIPs 10mm"}, "reformatted or projected (mips)"),
        ({"description": "Lung MinIP"}, "reformatted or projected (min ip, minip)"),
        ({"description": "ThoraxMPR_cor"}, "reformatted or projected (mpr)"),
        ({"description": "Thorax cor MPR"}, "reformatted or projected (mpr)"),
        ({"description": "Thorax VRT"}, "reformatted or projected (vrt)"),
        ({"description": "Thorax reformatted"}, "reformatted or projected (reformatted)"),
        ({"image_type": ("DERIVED", "SECONDARY", "MPR")}, "reformatted or projected (mpr)"),
        ({"image_type": ("DERIVED", "PRIMARY", "MIN_IP")}, "reformatted or projected (min_ip)"),
        ({"image_type": ("DERIVED", "SECONDARY", "PROJECTION IMAGE")}, "projected (projection)"),
        ({"unreadable": "OSError in one of its 60 headers"}, "cannot be read: OSError"),
        ({"sop_class_uid": XRayRadiationDoseSRStorage}, "Dose SR Storage: not a CT or MR image"),
        ({"sop_class_uid": SecondaryCaptureImageStorage}, "not a CT or MR image"),
        ({"sop_class_uid": SegmentationStorage}, "Segmentation Storage: not a CT or MR image"),
        ({"modality": "PT"}, "modality PT, protocols exist for CT, MR"),
        ({"modality": ""}, "modality unknown"),
        ({"positions": 20}, "60 images at 20 places: several phases, echoes or b-values"),
        ({"positions": None}, "its images do not say where in the patient they lie"),
    ],
    ids=lambda each: str(each)[:40],
)
def test_what_is_no_plain_stack_is_refused_and_the_reason_told(
    said: dict[str, Any], told: str
) -> None:
    bad = ct(**{"body_part": "CHEST", "slices": 900, "positions": 900} | said)
    bad = replace(bad, slices=60 if "positions" in said else 900)
    assert told in reason(bad)
    assert told in reason(bad, fallback="ct_chest")
    good = ct("Thorax 5mm", uid="1.2")
    found = route([bad, good], RULES)
    assert chosen(found).description == "Thorax 5mm"
    assert told in found.choices[0].reason


@pytest.mark.parametrize("text", ["t1_mprage_sag", "T1 MPRage", "3D BRAVO loco", "T1 simple"])
def test_words_that_only_look_like_a_projection_or_a_localizer_are_read(text: str) -> None:
    assert route([mr(text, "BRAIN")], RULES).protocol == "mr_brain"


# --- which series: the best ---------------------------------------------------------------------


def test_an_original_series_is_read_before_a_derived_one() -> None:
    derived = ct("Thorax 1mm", slices=300, image_type=("DERIVED", "PRIMARY", "AXIAL"))
    assert best(*numbered(derived, ct("Thorax 5mm"))) == "Thorax 5mm"
    (choice,) = route([derived], RULES).choices
    assert choice.reason.startswith("derived, axial, soft kernel, 300 slices")


def test_an_axial_series_is_read_before_another() -> None:
    coronal = ct("Thorax cor", slices=300, axial=False)
    found = route(numbered(coronal, ct("Thorax ax")), RULES)
    assert chosen(found).description == "Thorax ax"
    assert found.choices[0].reason.endswith("the chosen one has axial slices")


@pytest.mark.parametrize("kernel", ["B70f", "Bl57", "Br64d", "I70f 3", "FC52", "LUNG", "BONEPLUS"])
def test_a_soft_kernel_is_read_before_a_sharp_one(kernel: str) -> None:
    sharp, soft = numbered(
        ct("Thorax 1mm", kernel=kernel, slices=300), ct("Thorax 5mm", kernel="B30f")
    )
    found = route([sharp, soft], RULES)
    assert found.series_uid == soft.uid
    assert "sharp kernel" in found.choices[0].reason
    assert "soft kernel" in found.choices[1].reason


def test_a_region_called_lung_is_no_sharp_kernel() -> None:
    lung, thorax = numbered(
        ct("Lung screening 1mm", kernel="STANDARD", slices=300), ct("Thorax", kernel="STANDARD")
    )
    assert route([lung, thorax], RULES).series_uid == lung.uid


def test_a_plain_contrast_is_read_before_a_map() -> None:
    assert best(*numbered(mr("ADC Kopf", slices=90), mr("T1 Kopf"))) == "T1 Kopf"
    assert best(*numbered(mr("Kopf", slices=90, image_type=("DERIVED", "PRIMARY", "DIFFUSION")),
                          mr("T2 Kopf"))) == "T2 Kopf"  # fmt: skip


def test_more_and_then_thinner_slices_decide() -> None:
    assert best(*numbered(ct("Thorax A"), ct("Thorax B", slices=61))) == "Thorax B"
    thick, thin = (ct(f"Thorax {mm}", slice_thickness_mm=mm) for mm in (5.0, 1.0))
    assert best(*numbered(thick, thin)) == "Thorax 1.0"
    assert best(*numbered(ct("Thorax unknown"), thick)) == "Thorax 5.0"


def test_a_series_that_is_surely_of_the_region_is_read_before_one_that_might_be() -> None:
    unsure = ct("1.0 B30f", study_description="CT Thorax", slices=900)
    sure = ct("Thorax 5mm", study_description="CT Thorax")
    found = route(numbered(unsure, sure), RULES)
    assert chosen(found).description == "Thorax 5mm"
    assert "a surer region" in found.choices[0].reason


def test_too_few_slices_are_refused_and_both_numbers_told() -> None:
    assert "15 slices, protocol ct_chest needs 16" in reason(ct("Thorax", slices=15))
    assert route([ct("Thorax", slices=16)], RULES).protocol == "ct_chest"
    few, enough = numbered(ct("Thorax", slices=15, axial=True), ct("Thorax cor", axial=False))
    found = route([few, enough], RULES)
    assert found.series_uid == enough.uid
    assert found.choices[0].reason == "15 slices, ct_chest needs 16"


def test_two_like_series_are_told_apart_by_their_uids() -> None:
    found = route(numbered(ct("Thorax"), ct("Thorax")), RULES)
    assert found.series_uid == "1.1"
    assert found.choices[1].reason.endswith("nothing more, but came first")


# --- nothing fits -------------------------------------------------------------------------------


def test_an_unknown_region_is_read_by_the_fallback_alone() -> None:
    unknown = ct("1.0 B30f", study_description="Routine")
    assert "'1.0 B30f'" in reason(unknown)
    found = route([unknown], RULES, fallback="ct_abdomen")
    assert found.protocol == "ct_abdomen"
    assert "the region is unknown, this is the fallback" in found.reason
    assert "no protocol is for its region" in reason(unknown, fallback="mr_brain")
    assert "12 slices" in reason(replace(unknown, slices=12, positions=12), fallback="ct_chest")


@pytest.mark.parametrize(
    "series", [ct("Knie links"), ct("1.0", "KNEE"), ct("1.0", study_description="CT Kopf")]
)
def test_a_region_that_is_known_is_no_matter_for_the_fallback(series: SeriesSummary) -> None:
    assert "no protocol is for its region" in reason(series, fallback="ct_chest")


@pytest.mark.parametrize("series", [ct("Knie links"), ct("Abdomen", "CHEST"), ct("1.0")])
def test_a_protocol_that_somebody_asks_for_reads_what_they_give(series: SeriesSummary) -> None:
    chest = [each for each in RULES if each.protocol == "ct_chest"]
    assert route([series], chest, fallback="ct_chest").series_uid == series.uid
    assert "a localizer" in reason(ct("Knie Scout"), rules=chest, fallback="ct_chest")
    assert "modality MR" in reason(mr("Knie"), rules=chest, fallback="ct_chest")


def test_the_fallback_is_not_asked_where_a_rule_fits() -> None:
    known, unknown = numbered(ct("Thorax"), ct("1.0", slices=900))
    found = route([unknown, known], RULES, fallback="ct_abdomen")
    assert (found.protocol, found.series_uid) == ("ct_chest", known.uid)


def test_no_series_and_no_protocol_are_said() -> None:
    with pytest.raises(NoFit, match="the study has no series"):
        route([], RULES)
    with pytest.raises(NoFit, match="there is no protocol"):
        route([ct("Thorax")], [])


def test_a_refusal_tells_what_was_seen_and_what_there_is() -> None:
    with pytest.raises(NoFit) as error:
        route(numbered(ct("Knie"), ct("Thorax", slices=3)), RULES)
    for told in ("Knie: no protocol is for its region", "Thorax: 3 slices", "ct_chest (CT)"):
        assert told in str(error.value)


# --- always -------------------------------------------------------------------------------------

GOOD = {
    "description": ["", "Thorax 5mm", "Abdomen", "Kopf", "1.0 B30f", "Neck Chest", "肝", "Knie"],
    "study_description": ["", "CT Thorax/Abdomen", "MR Kopf", "Routine"],
    "body_part": ["", "CHEST", "ABDOMEN", "HEAD", "CHESTABDPELVIS", "KNEE"],
    "kernel": ["", "B30f", "B70f"],
    "modality": ["CT", "MR"],
    "axial": [True, False, None],
    "slice_thickness_mm": [None, 1.0, 5.0],
    "slices": [3, 16, 60, 300],
    "image_type": [ORIGINAL, ("DERIVED", "PRIMARY"), ()],
}
BAD: list[dict[str, Any]] = [
    {"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")},
    {"image_type": ("DERIVED", "SECONDARY", "MPR")},
    {"description": "Thorax Scout"},
    {"sop_class_uid": SecondaryCaptureImageStorage},
    {"modality": "PT"},
    {"positions": 2},
    {"positions": None},
    {"unreadable": "OSError"},
    {"body_part": "CHEST", "description": "Knie"},
]
GOOD_SERIES = st.fixed_dictionaries({key: st.sampled_from(each) for key, each in GOOD.items()})
SERIES = st.lists(st.tuples(GOOD_SERIES, st.one_of(st.just({}), st.sampled_from(BAD))), max_size=6)


def outcome(series: list[SeriesSummary], fallback: str) -> Route | tuple[str, tuple[Choice, ...]]:
    try:
        return route(series, RULES, fallback=fallback)
    except NoFit as error:
        return str(error), error.choices


@settings(deadline=None)
@given(SERIES, st.sampled_from(["", "ct_chest", "mr_brain"]), st.randoms())
def test_no_bad_series_is_ever_chosen_and_the_order_never_matters(
    drawn: list[tuple[dict[str, Any], dict[str, Any]]], fallback: str, random: Any
) -> None:
    series = [
        replace(ct(**good), uid=f"1.{number}", **bad) for number, (good, bad) in enumerate(drawn, 1)
    ]
    found = outcome(series, fallback)
    assert outcome(random.sample(series, len(series)), fallback) == found
    choices = found.choices if isinstance(found, Route) else found[1]
    assert [each.series_uid for each in choices] == [each.uid for each in series]
    assert all(each.reason for each in choices)
    if not isinstance(found, Route):
        assert not any(each.chosen for each in choices)
        return
    read, bad = next(
        (each, bad)
        for each, (_, bad) in zip(series, drawn, strict=True)
        if each.uid == chosen(found).series_uid
    )
    rule = next(each for each in RULES if each.protocol == found.protocol)
    assert not bad
    assert read.modality == rule.modality
    assert read.slices >= rule.minimum_slices
    assert "Knie" not in read.description
    assert read.body_part != "KNEE"
