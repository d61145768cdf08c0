"""CONFORMANCE.md against the code: associations, SOP classes, statuses, attributes, events."""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import drafts
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless
from pynetdicom import AE, build_context, sop_class

from dicom_node import config, errors, spool
from dicom_node.config import Config
from dicom_node.jobs import State
from dicom_node.network.upper_layer import MAXIMUM_PDU
from dicom_node.routing import series
from dicom_node.scp import Scp
from dicom_node.volume import pixels, volume
from tests import statement

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONFORMANCE.md").read_text()
KIND = re.compile(r"[a-z]+\.[a-z_]+")
FAMILIES = {
    "answer", "association", "commitment", "delivery", "destination", "draft", "erasure", "hold",
    "instance", "intake", "job", "ledger", "pull", "qa", "result", "retention", "role", "spool",
    "stow", "study", "tls", "watched",
}  # fmt: skip
# Kinds of events that are put together at run time, and what they may become.
PUT_TOGETHER = {
    "answer.": {"unrelated", "unread"},
    "association.": {"released", "aborted", "lost"},
    "delivery.": {"sent", "delivered", "failed", "held"},
    "pull.": {"done", "failed"},
    "job.": {str(State.DONE), str(State.FAILED), str(State.REJECTED)},
}
# No association is open when these are raised, or its peer is not the one to be told.
UNTOLD = {
    "ConfigError", "UnusableSeries", "NoRoute", "PeerError", "SilentPeer", "Busy", "NotTaken",
    "LedgerBroken",
}  # fmt: skip


def rows(heading: str) -> list[list[str]]:
    """Give the cells of the first table below a heading, without its head."""
    below = TEXT.split(f"{heading}\n", 1)[1]
    table = re.search(r"((?:^\|.*\n)+)", below, re.MULTILINE)
    assert table is not None, f"no table below {heading}"
    lines = table[1].splitlines()[2:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


def accepted(scp: Scp, *syntaxes: str, transfer_syntaxes: tuple[str, ...] = ()) -> dict[str, str]:
    """Give the accepted abstract syntaxes and the transfer syntax of each."""
    found = {}
    for first in range(0, len(syntaxes), 100):
        contexts = [
            build_context(each, list(transfer_syntaxes) or None)
            for each in syntaxes[first : first + 100]
        ]
        assoc = AE("PEER").associate("127.0.0.1", scp.port, contexts=contexts, ae_title="LAMED")
        found |= {
            str(each.abstract_syntax): each.transfer_syntax[0] for each in assoc.accepted_contexts
        }
        if assoc.is_established:
            assoc.release()
    return found


def classes(name: str) -> list[str]:
    return list(getattr(sop_class, name).values())


# --- association ----------------------------------------------------------------------------------


def test_the_sop_classes_that_are_read_and_written() -> None:
    told = {row[1]: row[2:] for row in rows("### Storage SOP classes") if row[1]}
    assert {uid for uid, row in told.items() if row[2] == "read"} == set(volume.CLASSES)
    assert set(volume.CLASSES) == series.VOLUMES
    made = [each for instances in statement.made().values() for each in instances]
    assert {uid for uid, row in told.items() if row[1] == "yes"} == {
        each.SOPClassUID for each in made
    }
    assert {each.file_meta.TransferSyntaxUID for each in made} == {ExplicitVRLittleEndian}
    for name, uid, *_ in rows("### Storage SOP classes"):
        assert not uid or statement.named(uid) == name


def test_every_storage_class_is_accepted_and_private_ones_too(scp: Scp) -> None:
    storage = [*classes("_STORAGE_CLASSES"), "1.3.12.2.1107.5.9.1"]
    assert set(accepted(scp, *storage)) == set(storage)


def test_what_is_no_storage_or_verification_is_refused(scp: Scp) -> None:
    refused = [
        uid
        for name in (
            "_QR_CLASSES",
            "_STORAGE_COMMITMENT_CLASSES",
            "_PROCEDURE_STEP_CLASSES",
            "_UNIFIED_PROCEDURE_STEP_CLASSES",
            "_NON_PATIENT_OBJECT_CLASSES",
            "_PRINT_MANAGEMENT_CLASSES",
        )
        for uid in classes(name)
    ]
    assert accepted(scp, *refused, sop_class.Verification).keys() == {sop_class.Verification}


def test_the_transfer_syntax_that_is_proposed_first_is_taken(scp: Scp) -> None:
    proposed = (JPEG2000Lossless, ExplicitVRLittleEndian)
    taken = accepted(scp, sop_class.CTImageStorage, transfer_syntaxes=proposed)
    assert taken == {sop_class.CTImageStorage: JPEG2000Lossless}


def test_an_association_says_of_us_what_the_statement_says(scp: Scp) -> None:
    assoc = AE("PEER").associate(
        "127.0.0.1", scp.port, contexts=[build_context(sop_class.Verification)], ae_title="LAMED"
    )
    us = assoc.acceptor
    assoc.release()
    told = dict(rows("#### 4.2.1 Association policies"))
    assert us.maximum_length == MAXIMUM_PDU
    assert told["Maximum PDU offered"] == f"{us.maximum_length} bytes"
    assert told["Implementation Class UID"].split(",")[0] == us.implementation_class_uid
    assert told["Implementation Version Name"] == us.implementation_version_name
    assert us.implementation_class_uid == spool.IMPLEMENTATION_UID


def test_the_parameters_have_the_defaults_that_the_code_has() -> None:
    defaults = {each.name: each.default for each in config.describe(None, {})}
    told = {name: default for _, name, default in rows("#### 4.4.2 Parameters")}
    assert told == {name: defaults[name] for name in told}
    assert set(told) <= {each.name for each in fields(Config)}


def test_the_transfer_syntaxes_without_compression_are_those_that_are_read() -> None:
    told = {row[1] for row in rows("#### Transfer syntaxes that are read")}
    assert told >= pixels.NATIVE


# --- statuses -------------------------------------------------------------------------------------


def subclasses(root: type[errors.NodeError] = errors.NodeError) -> Iterator[type[errors.NodeError]]:
    if root.__module__ == errors.__name__:
        yield root
    for each in root.__subclasses__():
        yield from subclasses(each)


def test_every_error_stands_in_the_table_with_its_numbers() -> None:
    told = {name: numbers for name, *numbers, _ in rows("### Errors")}
    assert told == {
        each.__name__: [
            "-" if each.__name__ in UNTOLD else f"0x{each.status:04X}",
            str(each.http_status),
            str(each.exit_code),
        ]
        for each in subclasses()
    }


def test_the_statuses_of_c_store_are_those_of_the_errors() -> None:
    told = [status for status, *_ in rows("#### C-STORE responses")]
    assert len(told) == len(set(told))
    known = {each.status for each in subclasses() if each.__name__ not in UNTOLD}
    assert set(told) == {f"0x{status:04X}" for status in known | {0x0000}}


# --- what is written ------------------------------------------------------------------------------


def test_the_tables_are_those_of_the_objects() -> None:
    """Attributes, content items, codes, profiles: `python -m tests.statement` writes them."""
    expected = statement.generated(TEXT)
    for name, block in expected.items():
        assert f"<!-- {name} -->\n{block}<!-- / -->" in TEXT, f"expected\n\n{block}"
    assert sorted(re.findall(r"<!-- ([a-z -]+) -->", TEXT)) == sorted(expected)


def test_every_attribute_has_a_value_that_is_told() -> None:
    for name in statement.TITLES:
        values = statement.told(statement.between(TEXT, name))
        assert values.keys() == statement.tables()[name].keys()
        assert not [path for path, value in values.items() if value in {"", statement.UNTOLD}]
        assert f"#### {statement.TITLES[name]}\n" in TEXT


def test_an_attribute_that_is_not_always_written_is_told_so() -> None:
    values = {path: each.presence for path, each in statement.tables()["seg"].items()}
    assert values["MaximumFractionalValue",] == "ANAP"
    assert values["PixelData",] == "ALWAYS"
    assert values["PositionReferenceIndicator",] == "EMPTY"
    assert statement.tables()[statement.ALL]["StudyDate",].presence == "VNAP"


def test_nothing_private_is_written() -> None:
    for instances in statement.made().values():
        for made in instances:
            tags = [each.tag for each in made.iterall()]
            assert len(tags) > 30
            assert not [tag for tag in tags if tag.is_private]


def test_the_templates_are_those_of_the_annex() -> None:
    told = {name: template for name, template, _ in rows("#### Templates") if name}
    found = {}
    for instances in statement.made().values():
        for each in instances:
            for template in each.get("ContentTemplateSequence", []):
                name = statement.named(str(each.SOPClassUID)).removesuffix(" Storage")
                found[name] = f"TID {template.TemplateIdentifier}"
    assert {name: " ".join(each.split()[:2]) for name, each in told.items()} == found


def test_the_annex_has_the_protocols_as_they_are() -> None:
    told = {row[0]: row[1:] for row in rows("#### Protocols that come with the node")}
    assert told == {
        each.name: [
            each.modality,
            str(each.document_title),
            str(each.procedure),
            str(each.region),
            "; ".join(
                f"{one.target.type.value} {one.target.label}" for one in each.targets if one.target
            ),
        ]
        for each in drafts.PROTOCOLS.values()
    }


# --- events ---------------------------------------------------------------------------------------


def test_every_kind_of_event_is_explained_to_the_reader() -> None:
    told = [kind for kind, *_ in rows("### Events of the ledger")]
    assert told == sorted(told)
    assert set(told) == set(event_kinds())


def event_kinds() -> Iterator[str]:
    """Find in the code what is written as the kind of an event."""
    prefixes, words = set(), set()
    for path in sorted((ROOT / "dicom_node").rglob("*.py")):
        tree = ast.parse(path.read_text())
        logged = {id(each) for call in logs(tree) for each in ast.walk(call)}
        for each in ast.walk(tree):
            if isinstance(each, ast.JoinedStr):
                prefixes.add(beginning(each))
            elif isinstance(each, ast.Constant) and id(each) not in logged:
                words.add(each.value)
    assert {each for each in prefixes if each.rstrip(".") in FAMILIES} == set(PUT_TOGETHER)
    yield from filter(is_kind, words)
    for prefix, ends in PUT_TOGETHER.items():
        assert ends <= words
        yield from (f"{prefix}{each}" for each in ends)


def logs(tree: ast.AST) -> Iterator[ast.Call]:
    """Find what goes to the log: it has names of its own."""
    for each in ast.walk(tree):
        if isinstance(each, ast.Call) and isinstance(each.func, ast.Attribute):
            owner = each.func.value
            if isinstance(owner, ast.Name) and owner.id == "log":
                yield each


def beginning(text: ast.JoinedStr) -> str:
    first = text.values[0]
    return str(first.value) if isinstance(first, ast.Constant) else ""


def is_kind(value: object) -> bool:
    return (
        isinstance(value, str)
        and KIND.fullmatch(value) is not None
        and value.split(".")[0] in FAMILIES
        and not value.endswith((".html", ".css", ".json", ".dcm", ".txt", ".lock", ".sqlite"))
    )
