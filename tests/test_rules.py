"""The file of rules: what may stand in it, what is refused, and what follows for a study."""

from pathlib import Path
from typing import Any

import pytest
from test_selection import RULES, ct

from dicom_node.config import Destination
from dicom_node.errors import ConfigError
from dicom_node.routing import rules
from dicom_node.routing.deciding import Decision, decide, terms
from dicom_node.routing.rules import RuleBook
from dicom_node.routing.series import SeriesSummary

PACS = Destination("PACS", "192.0.2.5", 104)
NAMES = [each.protocol for each in RULES]
ANY_CT = '[[rules]]\nname = "a"\nwhen = \'Modality == "CT"\'\n'


def write(folder: Path, text: str) -> RuleBook:
    path = folder / "rules.toml"
    path.write_text(text, encoding="utf-8")
    return rules.read(path, NAMES, [PACS])


def chest(uid: str = "1", **changed: Any) -> SeriesSummary:
    told = {"Modality": ("CT",), **changed.pop("values", {})}
    return ct(uid, values=told, **changed)


def abdomen(uid: str = "2", **changed: Any) -> SeriesSummary:
    return chest(uid, body_part="ABDOMEN", description="Abdomen", **changed)


def report(uid: str = "9") -> SeriesSummary:
    return SeriesSummary(
        uid, "SR", "1.2.840.10008.5.1.4.1.1.88.67", sop_uids=("9.1",), values={"Modality": ("SR",)}
    )


def decided(book: RuleBook | None, *series: SeriesSummary, **options: Any) -> Decision:
    return decide(series, book, RULES, **options)


# --- the file -----------------------------------------------------------------------------------


def test_a_rule_says_all_that_it_may(tmp_path: Path) -> None:
    book = write(
        tmp_path,
        """
        match = "all"
        otherwise = "refuse"
        [[rules]]
        name = "night"
        when = 'Modality == "CT"'
        protocol = ["ct_chest", "ct_abdomen"]
        priority = "off-peak"
        window = "19:00-06:00"
        quiet_s = 5
        expected = "ImagesInAcquisition + 1"
        destinations = ["PACS"]
        [rules.series]
        only = "SliceThickness <= 5"
        prefer = ['contrast == "venous"', {when = "sharp", points = -10}]
        minimum_slices = 40
        any_region = true
        """,
    )
    (rule,) = book.rules
    assert (book.match, book.otherwise) == ("all", "refuse")
    assert rule.protocols == ("ct_chest", "ct_abdomen")
    assert (rule.priority, rule.window, rule.quiet_s) == ("off-peak", "19:00-06:00", 5)
    assert rule.destinations == ("PACS@192.0.2.5:104",)
    assert [each.points for each in rule.prefer] == [25, -10]
    assert (rule.minimum_slices, rule.any_region) == (40, True)
    assert book.keywords == {"Modality", "ImagesInAcquisition", "SliceThickness"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rules = 3", "expected 1 to 500 tables [[rules]]"),
        ("", "expected 1 to 500 tables"),
        ("[[rules]", "is not TOML"),
        ("mach = 'all'\n" + ANY_CT, "'mach' is not known here, only match, otherwise, rules; is m"),
        ("match = 'any'\n" + ANY_CT, "match must be first, all, not 'any'"),
        ("[[rules]]\nname = 'a'", "rule 1, 'a': when must be a condition, not nothing"),
        ("[[rules]]\nwhen = 'Modality'", "rule 1, without a name: name must be"),
        ("[[rules]]\nname = 'a'\nwhen = 'Modalty'", "when: line 1, column 1: no keyword of DICOM"),
        (ANY_CT + "protocl = 'ct_chest'", "is protocol meant?"),
        (ANY_CT + "protocol = 'ct_chess'", "or each; not 'ct_chess'; is ct_chest meant?"),
        (ANY_CT + "priority = 'urgnt'", "priority must be urgent, normal, off-peak, not 'urgnt'"),
        (ANY_CT + "window = '19:00-06:00'", 'a window is for priority = "off-peak"'),
        (ANY_CT + "priority = 'off-peak'\nwindow = '7pm'", "a window is HH:MM-HH:MM"),
        (ANY_CT + "quiet_s = nan", "quiet_s must be a number, 0.05 to 604800, not nan"),
        (ANY_CT + "quiet_s = true", "quiet_s must be a number"),
        (ANY_CT + "expected = 0", "expected must be a whole number, 1 to"),
        (ANY_CT + "expected = 'ImagesInAcquisitio'", "expected: line 1, column 1"),
        (ANY_CT + "destinations = ['ARCHIVE']", "(PACS@192.0.2.5:104), not 'ARCHIVE'"),
        (ANY_CT + "action = 'drop'", "action must be read, ignore, refuse"),
        (
            ANY_CT + "action = 'ignore'\nprotocol = 'ct_chest'",
            "a rule that is to ignore has no pro",
        ),
        (ANY_CT + "series = 'sharp'", "series needs a protocol"),
        (ANY_CT + "protocol = 'each'\nseries = 'shrp'", "is sharp meant?"),
        (ANY_CT + "protocol = 'each'\nseries = {prefer = 'sharp'}", "series.prefer must be a list"),
        (ANY_CT + ANY_CT, "two rules are called 'a'"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_rule(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        write(tmp_path, text)
    assert str(tmp_path / "rules.toml") in str(caught.value)
    assert said in str(caught.value)


def test_rules_that_are_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the rules .*none\.toml: No such file"):
        rules.read(tmp_path / "none.toml", NAMES, [])


# --- what follows -------------------------------------------------------------------------------


def test_without_rules_the_protocols_decide_about_one_series() -> None:
    decision = decided(None, chest(), abdomen(), report())
    assert [each.protocol for each in decision.jobs] == ["ct_abdomen"]
    assert decision.verdicts == ()


def test_the_first_rule_that_fits_decides_and_each_other_says_why_not(tmp_path: Path) -> None:
    book = write(
        tmp_path,
        "[[rules]]\nname='mr'\nwhen='Modality == \"MR\"'\nprotocol='mr_brain'\n"
        "[[rules]]\nname='er'\nwhen='StationName starts with \"ER\"'\nprotocol='ct_chest'\n"
        "priority='urgent'\ndestinations='PACS'\n" + ANY_CT,
    )
    decision = decided(book, chest(values={"StationName": ("ER2",)}), abdomen())
    (job,) = decision.jobs
    assert (job.protocol, job.rule, job.priority) == ("ct_chest", "er", "urgent")
    assert job.destinations == (str(PACS),)
    assert [each.fits for each in decision.verdicts] == [False, True, False]
    assert decision.verdicts[0].why == "Modality == \"MR\" is not so: it is 'CT'"
    assert decision.verdicts[2].why == "not asked: rule 'er' came first"
    (skipped,) = [each for each in job.choices if not each.chosen]
    assert skipped.reason == "rule 'er' is not for it: StationName is missing"


def test_a_scan_of_two_regions_becomes_two_jobs(tmp_path: Path) -> None:
    book = write(tmp_path, ANY_CT + "protocol = 'each'")
    both = chest("3", body_part="CHESTABDOMEN", description="Thorax Abdomen")
    decision = decided(book, both)
    assert {each.protocol: each.series_uid for each in decision.jobs} == {
        "ct_abdomen": "3",
        "ct_chest": "3",
    }
    decision = decided(book, chest("1"), abdomen("2"))
    assert {each.protocol: each.series_uid for each in decision.jobs} == {
        "ct_abdomen": "2",
        "ct_chest": "1",
    }


def test_all_rules_have_their_say_if_they_are_to(tmp_path: Path) -> None:
    one = "[[rules]]\nname='{0}'\nwhen='Modality == \"CT\"'\nprotocol='{1}'\npriority='{2}'\n"
    text = 'match = "all"\n' + one.format("c", "ct_chest", "urgent")
    text += one.format("b", "ct_abdomen", "normal") + one.format("d", "ct_chest", "off-peak")
    decision = decided(write(tmp_path, text), chest(), abdomen())
    assert [(each.protocol, each.rule) for each in decision.jobs] == [
        ("ct_chest", "c"),
        ("ct_abdomen", "b"),
    ]


def test_what_is_ignored_is_seen_by_no_later_rule(tmp_path: Path) -> None:
    ignoring = "[[rules]]\nname='no sr'\nwhen='Modality == \"SR\"'\naction='ignore'\n"
    book = write(tmp_path, ignoring + ANY_CT + "protocol='ct_chest'")
    (job,) = decided(book, report(), chest()).jobs
    assert {each.series_uid: each.reason for each in job.choices}["9"] == "ignored by rule 'no sr'"
    decision = decided(book, report())
    assert (decision.action, decision.jobs) == ("ignore", ())


def test_what_is_refused_waits_for_a_person(tmp_path: Path) -> None:
    refusing = "[[rules]]\nname='kids'\nwhen='PatientAge < 16'\naction='refuse'\n"
    book = write(tmp_path, refusing + ANY_CT + "protocol='ct_chest'")
    decision = decided(book, chest(values={"PatientAge": ("007Y",)}))
    assert (decision.action, decision.reason) == ("refuse", "rule 'kids' refuses it")
    assert decided(book, chest(values={"PatientAge": ("017Y",)})).jobs


@pytest.mark.parametrize(
    ("otherwise", "action", "jobs"),
    [("auto", "read", 1), ("ignore", "ignore", 0), ("refuse", "refuse", 0)],
)
def test_what_no_rule_fits(tmp_path: Path, otherwise: str, action: str, jobs: int) -> None:
    text = f"otherwise = '{otherwise}'\n[[rules]]\nname='a'\nwhen='Modality == \"MR\"'\n"
    decision = decided(write(tmp_path, text), chest())
    assert (decision.action, len(decision.jobs)) == (action, jobs)


def test_a_rule_that_fits_and_finds_no_series_refuses_with_the_reasons(tmp_path: Path) -> None:
    book = write(tmp_path, ANY_CT + "protocol='ct_chest'")
    decision = decided(book, abdomen())
    assert decision.action == "refuse"
    assert "rule 'a' fits, but no series can be read" in decision.reason
    assert "another region than ct_chest" in decision.choices[0].reason


def test_a_rule_without_a_protocol_leaves_that_to_the_protocols(tmp_path: Path) -> None:
    (job,) = decided(write(tmp_path, ANY_CT + "priority='urgent'"), chest()).jobs
    assert (job.protocol, job.priority, job.rule) == ("ct_chest", "urgent", "a")


def test_one_image_stands_for_its_series_when_a_rule_is_tried(tmp_path: Path) -> None:
    alone = chest(slices=1)
    for book in (None, write(tmp_path, ANY_CT + "protocol='ct_chest'\nseries={minimum_slices=9}")):
        assert not decided(book, alone).jobs
        assert decided(book, alone, whole=False).jobs


def test_the_most_patient_rule_and_the_largest_number_count(tmp_path: Path) -> None:
    text = 'match = "all"\n' + ANY_CT + "quiet_s = 5\nexpected = 'ImagesInAcquisition'\n"
    text += "[[rules]]\nname='b'\nwhen='Modality'\nquiet_s = 60\n"
    book = write(tmp_path, text)
    told = terms([chest(values={"ImagesInAcquisition": (40.0,)}), abdomen(
        values={"ImagesInAcquisition": (90.0,)})], book)  # fmt: skip
    assert (told.quiet_s, told.expected) == (60, 90)
    assert terms([chest()], book).expected is None
    assert terms([chest()], None) == terms([], book)
