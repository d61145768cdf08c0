"""The commands that need no network: a folder of DICOM in, files or an answer out.

Knows the same parts as the node in service, in the same order, without queue and ledger.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pydicom
from pydicom.errors import InvalidDicomError

import model
import sr_templates
from model.checkpoint import import_checkpoint as verify_and_write
from model.checkpoint import load
from sr_templates import Code, Protocol, Question, Target

from . import results, routing, scu, series, serve, worker
from .config import Config
from .errors import BadInput, ConfigError, NotDicom
from .instance import Instance

Tell = Callable[[str], None]

# What a mask of a free question is called: nobody has said what it outlines.
REGION = Target(
    label="Region that was asked for",
    category=Code("SCT", "91723000", "Anatomical Structure"),
    type=Code("SCT", "38866009", "Body part structure (body structure)"),
)


def run(folder: Path, config: Config, *, protocol: str, out: Path, tell: Tell) -> dict[str, Any]:
    """Read the study of a folder and write what comes of it; return the summary.

    Raises
    ------
    BadInput
        No DICOM file, more than one study, no series that fits, or one that makes no volume.
    ConfigError
        No protocol has this name.
    """
    instances = _instances(folder)
    protocols = serve.protocols(config)
    rules = serve.rules(protocols)
    if protocol:
        rules = [each for each in rules if each.protocol == protocol]
        if not rules:
            raise ConfigError(
                f"no protocol is called {protocol!r}; there are {', '.join(protocols)}"
            )
    route = routing.route(
        series.summarize(instances), rules, fallback=protocol or config.fallback_protocol
    )
    tell(f"protocol {route.reason}")
    reading = _interpret(instances, route.series_uid, protocols[route.protocol], config, tell)
    summary = results.save(reading, out)
    tell(f"written to {out}")
    return summary


def ask(
    folder: Path, question: str, config: Config, *, out: Path | None, tell: Tell
) -> dict[str, Any]:
    """Ask one question about the one volume of a folder.

    Parameters
    ----------
    out
        Where the objects go; None writes nothing.
    """
    instances = _instances(folder)
    fitting = [each for each in series.summarize(instances) if each.modality in {"CT", "MR"}]
    if not fitting:
        raise BadInput(f"no CT or MR series in {folder}")
    largest = max(fitting, key=lambda each: each.slices)
    asked = Question("question", "Findings", question, target=REGION)
    like = next(
        each for each in serve.protocols(config).values() if each.modality == largest.modality
    )
    reading = _interpret(
        instances, largest.uid, replace(like, name="question", questions=(asked,)), config, tell
    )
    if out is not None:
        results.save(reading, out)
    summary = results.summarize(reading, out or Path())
    kept = {key: summary[key] for key in ("series", "model", "timings_s")}
    answer: dict[str, Any] = summary["answers"][0]
    return answer | kept | ({"outputs": summary["outputs"]} if out is not None else {})


def describe(summary: dict[str, Any]) -> str:
    """Say what `run` did in lines a person reads."""
    read = summary["series"]
    lines = [
        f"AI DRAFT - not for diagnostic use - {_model(summary)}",
        f"series     {read['description']} ({read['instances']} instances)",
        f"protocol   {summary['protocol']}",
        *(f"  {each['id']:<16} {_told(each)}" for each in summary["answers"]),
        *(f"{each['label']:<10} {each['path']}" for each in summary["outputs"]),
    ]
    return "\n".join(lines)


def describe_answer(answer: dict[str, Any]) -> str:
    """Say what `ask` found in lines a person reads."""
    return f"AI DRAFT - not for diagnostic use - {_model(answer)}\n{_told(answer)}"


def import_checkpoint(source: str, out: Path) -> dict[str, Any]:
    """Verify a released checkpoint and write it in our layout; see `model.checkpoint`."""
    try:
        return dict(vars(verify_and_write(source, out)))
    except model.ModelError as error:
        raise BadInput(str(error)) from error


def _interpret(
    instances: Sequence[Instance], series_uid: str, protocol: Protocol, config: Config, tell: Tell
) -> worker.Reading:
    chosen = sorted(
        (each for each in instances if each.series_uid == series_uid), key=lambda each: each.sop_uid
    )
    try:
        folder = serve.ensure_checkpoint(config)
        tell(f"loading {folder.name}")
        lamed = load(folder, config.device, config.dtype)
        return worker.interpret(
            [each.path for each in chosen],
            protocol,
            lamed,
            job_id=_job_id([each.sha256 for each in chosen], protocol, lamed.card),
            created_at=datetime.now(UTC),
            manufacturer=config.manufacturer,
            tell=tell,
        )
    except (model.ModelError, sr_templates.TemplateError) as error:
        raise BadInput(str(error)) from error


def _instances(folder: Path) -> list[Instance]:
    instances = [_instance(path) for path in scu.find_dicom(folder)]
    studies = {each.study_uid for each in instances}
    if len(studies) != 1:
        raise BadInput(f"expected the files of one study in {folder}, found {len(studies)} studies")
    return list({each.sop_uid: each for each in instances}.values())


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
    except (AttributeError, EOFError, OSError, ValueError, InvalidDicomError) as error:
        raise NotDicom(f"{path} cannot be used: {error}") from error


def _job_id(digests: Sequence[str], protocol: Protocol, card: model.Card) -> str:
    asked = [each.text for each in protocol.questions]
    parts = [*digests, protocol.name, *asked, card.sha256]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _model(summary: dict[str, Any]) -> str:
    card = summary["model"]
    return f"{card['name']}{' (UNTRAINED: means nothing)' if card['untrained'] else ''}"


def _told(answer: dict[str, Any]) -> str:
    mask = answer["mask"]
    outlined = f" [mask: {mask['voxels']} voxels, {mask['volume_ml']:.1f} mL]" if mask else ""
    return f"{answer['text'] or '(no words)'}{outlined}"
