"""The commands that need no network: a folder of DICOM in, files or an answer out.

Knows the same parts as the node in service, in the same order, without queue and ledger. The
model is loaded last: what cannot be read is said at once.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import pydicom

from dicom_node import profiles, routing, scu, serve
from dicom_node.config import Config
from dicom_node.errors import BadInput, ConfigError, NotDicom, Unavailable
from dicom_node.instance import Instance
from dicom_node.routing import NoFit, Route, Rule
from dicom_node.validator import Validator
from sr_templates import Code, Profile, Protocol, Question, Target, TemplateError
from sr_templates import chosen as chosen_labels
from sr_templates.protocol import LONG_STRING, MAXIMUM_QUESTION

if TYPE_CHECKING:
    from dicom_node.results import Reading
    from model import LaMed
    from model.card import Card

Tell = Callable[[str], None]

SUMMARY = "summary.json"
WRITTEN = ("draft.txt", "report.txt", "overlay.png", SUMMARY)  # besides the objects
IMAGE_SUFFIXES = {".dcm", ".dicom", ".ima"}
ASKED = "question"
FIRST = "1"
PROCEDURES = {
    "CT": Code("LN", "25045-6", "CT unspecified body region"),
    "MR": Code("LN", "25056-3", "MRI unspecified body region"),
}


def run(
    folder: Path,
    config: Config,
    *,
    protocol: str,
    out: Path,
    tell: Tell,
    shown: Sequence[str] = (),
) -> dict[str, Any]:
    """Read the study of a folder and write what comes of it; return the summary.

    `shown` names the profiles whose objects are written: what destinations of them would get.

    What an earlier run left in `out` is removed first: no file of one study may lie beside those
    of another.

    Raises
    ------
    BadInput
        No DICOM file, more than one study, no series that fits, or one that makes no volume.
    ConfigError
        No protocol, or no profile, has this name.
    """
    protocols, wanted = serve.protocols(config), profiles.named(config, shown)
    validator = Validator.of(config)
    rules = serve.rules(protocols)
    if protocol:
        rules = [each for each in rules if each.protocol == protocol]
        if not rules:
            raise ConfigError(
                f"no protocol is called {protocol!r}; there are {', '.join(protocols)}"
            )
    instances = _instances(folder)
    route = routing.route(
        routing.summarize(instances), rules, fallback=protocol or config.fallback_protocol
    )
    _tell_choices(route, tell)
    _clear(out)
    chosen = [each for each in instances if each.series_uid == route.series_uid]
    made = partial(_interpret, _load(config, tell), chosen, config=config, shown=wanted, tell=tell)
    reading = made(protocols[route.protocol])
    return _save(reading, route, chosen, validator, out, tell)


def ask(
    folder: Path,
    question: str,
    config: Config,
    *,
    out: Path | None,
    tell: Tell,
    shown: Sequence[str] = (),
) -> dict[str, Any]:
    """Ask one question about one series of a folder; which one, is decided as for a protocol.

    Parameters
    ----------
    out
        Where the objects go; None writes nothing.
    shown
        As for `run`.

    Raises
    ------
    BadInput
        The question cannot be asked, or no series can be read.
    """
    asked, wanted = _checked(question), profiles.named(config, shown)
    validator = Validator.of(config)
    instances = _instances(folder)
    route, lender = _route_question(instances, serve.protocols(config))
    _tell_choices(route, tell)
    if out is not None:
        _clear(out)
    chosen = [each for each in instances if each.series_uid == route.series_uid]
    made = partial(_interpret, _load(config, tell), chosen, config=config, shown=wanted, tell=tell)
    words = replace(lender, name=ASKED, questions=(Question(FIRST, "Question", asked),))
    reading = made(words)
    if reading.answers[0].masks:
        # Only the answer tells whether there is something to outline: then it is read as that.
        outline = Question(FIRST, "Question", asked, target=_target(asked))
        reading = made(replace(words, questions=(outline,)))
    from dicom_node import results

    summary = (
        _save(reading, route, chosen, validator, out, tell)
        if out
        else results.summarize(reading, Path())
    )
    kept = {key: summary[key] for key in ("series", "model", "timings_s")}
    answer: dict[str, Any] = summary["answers"][0]
    return answer | kept | ({"outputs": summary["outputs"]} if out is not None else {})


def describe(summary: dict[str, Any]) -> str:
    """Say what `run` did in lines a person reads."""
    read = summary["series"]
    lines = [
        f"AI DRAFT - not for diagnostic use - {_model(summary)}",
        f"series       {read['description']} ({read['instances']} instances): {read['reason']}",
        f"protocol     {summary['protocol']}",
        *(f"  {each['id']:<16} {_told(each)}" for each in summary["answers"]),
        *(f"{each['label']:<12} {each['path']}" for each in summary["outputs"]),
        *_faults(summary["record"]),
    ]
    return "\n".join(lines)


def describe_answer(answer: dict[str, Any]) -> str:
    """Say what `ask` found in lines a person reads."""
    lines = [f"AI DRAFT - not for diagnostic use - {_model(answer)}", _told(answer)]
    lines += [f"{each['label']:<12} {each['path']}" for each in answer.get("outputs", ())]
    return "\n".join(lines)


def import_checkpoint(source: str, out: Path) -> dict[str, Any]:
    """Verify a released checkpoint and write it in our layout; see `model.checkpoint`."""
    from model import ModelError
    from model.checkpoint import import_checkpoint as verify_and_write

    try:
        return dict(vars(verify_and_write(source, out)))
    except ModelError as error:
        raise BadInput(str(error)) from error


# --- which series -------------------------------------------------------------------------------


def _route_question(
    instances: Sequence[Instance], protocols: dict[str, Protocol]
) -> tuple[Route, Protocol]:
    """Choose the series as the node would; a region that no protocol knows can be asked about too.

    The protocol that fits lends its window and its codes.
    """
    summaries = routing.summarize(instances)
    try:
        route = routing.route(summaries, serve.rules(protocols))
        return route, protocols[route.protocol]
    except NoFit:
        anything = [Rule(ASKED, modality, (), (), 1) for modality in ("CT", "MR")]
        route = routing.route(summaries, anything, fallback=ASKED)
        modality = next(each.modality for each in summaries if each.uid == route.series_uid)
        like = next(each for each in protocols.values() if each.modality == modality)
        return route, _of_no_region(like)


def _of_no_region(protocol: Protocol) -> Protocol:
    """Take back what a protocol says of a region that the series may not show."""
    return replace(
        protocol,
        title=f"{protocol.modality} question",
        document_title=Code("LN", "18748-4", "Diagnostic Imaging Report"),
        procedure=PROCEDURES[protocol.modality],
        region=Code("SCT", "38266002", "Entire body"),  # CID 4031 has nothing wider
    )


def _tell_choices(route: Route, tell: Tell) -> None:
    tell(f"protocol {route.reason}")
    for each in sorted(route.choices, key=lambda each: not each.chosen):
        what = "reading " if each.chosen else "skipping"
        tell(f"{what} {each.description or each.series_uid}: {each.reason}")


def _instances(folder: Path) -> list[Instance]:
    """Find the instances of the one study of a folder."""
    paths = scu.find_dicom(folder)
    _check_others(folder, paths)
    if not paths:
        raise BadInput(f"no DICOM file in {folder}")
    instances = [_instance(path) for path in paths]
    studies = sorted({each.study_uid for each in instances})
    if len(studies) > 1:
        raise BadInput(
            f"expected the files of one study in {folder}, found {len(studies)}:"
            f" {', '.join(studies)}"
        )
    return _once(instances)


def _check_others(folder: Path, paths: Sequence[Path]) -> None:
    """Refuse what is called an image and is none: a copy cut short must not pass for a gap."""
    found = folder.rglob("*") if folder.is_dir() else [folder]
    for path in sorted(set(found) - set(paths)):
        hidden = path.name.startswith(".")  # macOS puts "._NAME.dcm" beside every file
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not hidden:
            raise NotDicom(f"{path} is no DICOM file (Part 10), or one that is cut short")


def _once(instances: Sequence[Instance]) -> list[Instance]:
    """Count a copy of a file once; two versions of an instance are for a person to sort out."""
    kept: dict[str, Instance] = {}
    for each in instances:
        earlier = kept.setdefault(each.sop_uid, each)
        if earlier.sha256 != each.sha256:
            raise BadInput(f"{earlier.path} and {each.path} are two versions of {each.sop_uid}")
    return list(kept.values())


def _instance(path: Path) -> Instance:
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        return Instance(
            study_uid=str(header.StudyInstanceUID),
            series_uid=str(header.SeriesInstanceUID),
            sop_uid=str(header.SOPInstanceUID),
            sop_class_uid=str(header.SOPClassUID),
            transfer_syntax_uid=str(header.file_meta.TransferSyntaxUID),
            path=path,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            size=path.stat().st_size,
            received_at=datetime.now(UTC),
            modality=str(header.get("Modality") or ""),
        )
    except PermissionError as error:
        raise Unavailable(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # the edge: any file may lie there, and pydicom may trip over it
        raise NotDicom(f"{path} cannot be used: {type(error).__name__}: {error}") from error


# --- how it is read -----------------------------------------------------------------------------


def _checked(question: str) -> str:
    """Refuse what cannot be asked before anything is loaded; the model knows its own limits."""
    question = question.strip()
    if not question:
        raise BadInput("a question is not empty")
    if len(question) > MAXIMUM_QUESTION:
        raise BadInput(
            f"a question has at most {MAXIMUM_QUESTION} characters, this one {len(question)}"
        )
    if not question.isprintable():
        raise BadInput("a question is one line of printable characters")
    return question


def _target(question: str) -> Target:
    """Name a mask by what was asked: nobody has said which structure it is."""
    return Target(
        label=shorten(question.replace("\\", " ").rstrip("."), LONG_STRING, placeholder="..."),
        category=Code("SCT", "91723000", "Anatomical Structure"),
        type=Code("SCT", "38866009", "Body part structure (body structure)"),
    )


def _load(config: Config, tell: Tell) -> "LaMed":
    from model import ModelError
    from model.checkpoint import choose, load

    try:
        choose(config.device, config.dtype)
    except ModelError as error:
        raise Unavailable(str(error)) from error
    folder = serve.checkpoint_folder(config)
    tell(f"loading {folder.name}")
    try:
        return load(folder, config.device, config.dtype)
    except ModelError as error:
        raise BadInput(str(error)) from error


def _interpret(
    lamed: "LaMed",
    chosen: Sequence[Instance],
    protocol: Protocol,
    *,
    config: Config,
    shown: Sequence[Profile],
    tell: Tell,
) -> "Reading":
    """Read one series; what comes of it holds only what destinations of these profiles get."""
    from dicom_node import worker
    from model import ModelError

    instances = sorted(chosen, key=lambda each: each.sop_uid)
    try:
        reading = worker.interpret(
            [each.path for each in instances],
            protocol,
            lamed,
            job_id=_job_id([each.sha256 for each in instances], protocol, lamed.card, config),
            created_at=datetime.now(UTC),
            manufacturer=config.manufacturer,
            shown=shown,
            tell=tell,
        )
    except (ModelError, TemplateError) as error:
        raise BadInput(str(error)) from error
    wanted = {label for each in shown for label in chosen_labels(each, reading.objects)}
    return replace(
        reading, objects={key: each for key, each in reading.objects.items() if key in wanted}
    )


def _job_id(digests: Sequence[str], protocol: Protocol, card: "Card", config: Config) -> str:
    """Give the same key, and with it the same UIDs, to whatever gives the same objects."""
    told = (*digests, repr(protocol), card.sha256, config.manufacturer, config.device, config.dtype)
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:32]


# --- what is written ----------------------------------------------------------------------------


def _clear(out: Path) -> None:
    """Make the folder; remove what an earlier run left; what is not surely ours stays."""
    from dicom_node import results

    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise BadInput(f"{out} can be no folder: a file is in its way") from error
    objects = sorted(f"{label}.dcm" for label in results.labels(out))
    found = [out / name for name in (*objects, *WRITTEN) if (out / name).exists()]
    if found and not _is_ours(out / SUMMARY):
        raise BadInput(f"{found[0]} is not of an earlier run; give another folder with --out")
    for path in found:  # the summary last: until then the rest is known to be ours
        path.unlink()


def _is_ours(summary: Path) -> bool:
    try:
        return {"series", "model", "outputs"} <= set(
            json.loads(summary.read_text(encoding="utf-8"))
        )
    except (OSError, ValueError, TypeError):
        return False


def _save(
    reading: "Reading",
    route: Route,
    instances: Sequence[Instance],
    validator: Validator,
    out: Path,
    tell: Tell,
) -> dict[str, Any]:
    from dicom_node import results, run_record

    summary = results.save(reading, out)
    rows = results.rows(reading, out, "")
    verdicts = {each.label: validator.check(each.path) for each in rows}
    summary["record"] = run_record.compose(reading, instances, rows, verdicts)
    chosen = next(each for each in route.choices if each.chosen)
    summary["series"] |= {"reason": chosen.reason}
    summary["skipped"] = [
        {"series_instance_uid": each.series_uid, "reason": each.reason}
        for each in route.choices
        if not each.chosen
    ]
    partial = out / f"{SUMMARY}.partial"
    told = json.dumps(summary, ensure_ascii=False, indent=2) + "\n"
    partial.write_text(told, encoding="utf-8")
    partial.replace(out / SUMMARY)
    tell(f"written to {out}")
    return summary


def _faults(record: dict[str, Any]) -> list[str]:
    """Say of each object that is not valid what the validator said."""
    told = [(each["label"], each["validation"]) for each in record["outputs"]]
    return [
        f"{each['state'].upper():<12} {label}: {'; '.join(each['lines'])}"
        for label, each in told
        if each["state"] != "valid"
    ]


def _model(summary: dict[str, Any]) -> str:
    card = summary["model"]
    return f"{card['name']}{' (UNTRAINED: means nothing)' if card['untrained'] else ''}"


def _told(answer: dict[str, Any]) -> str:
    mask = answer["mask"]
    outlined = f" [mask: {mask['voxels']} voxels, {mask['volume_ml']:.1f} mL]" if mask else ""
    return f"{answer['text'] or '(no words)'}{outlined}"
