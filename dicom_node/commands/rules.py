"""The commands about the rules of a site: whether they can be read, and what they would decide."""

import argparse
from pathlib import Path
from typing import Any

from dicom_node.errors import BadInput

from .command import Outcome, settings_of, verb


def add(verbs: Any) -> None:  # noqa: ANN401 - argparse has no public name for it
    """Add the commands to those of `lamed-node`."""
    group = verbs.add_parser("rules", help="which studies are read, and how").add_subparsers(
        required=True, metavar="VERB", title="verbs"
    )
    verb(group, "check", _check, "read the rules of the settings, and tell what is wrong with them")
    trial = verb(group, "test", _test, "what would become of these files, and why; nothing is kept")
    trial.add_argument("files", nargs="+", type=Path, metavar="FILE", help="files, or folders")


def _check(arguments: argparse.Namespace) -> Outcome:
    from dicom_node import serve

    config = settings_of(arguments)
    book = serve.rulebook(config, serve.protocols(config))
    if book is None:
        told = "no rules are set (rules): which study is read follows from the protocols"
        return Outcome({"rules": []}, told)
    rows = [
        {
            "name": each.name,
            "when": str(each.when),
            "action": each.action,
            "protocols": list(each.protocols),
            "priority": each.priority,
            "fetch": each.fetch,
        }
        for each in book.rules
    ]
    lines = [
        f"{each.name}: {each.action} {', '.join(each.protocols) or 'as the protocols imply'},"
        f" {each.priority}{f', with what {each.fetch} has' * bool(each.fetch)}, when {each.when}"
        if each.action == "read"
        else f"{each.name}: {each.action} when {each.when}"
        for each in book.rules
    ]
    lines.append(f"{config.rules}: {len(rows)} rules, match {book.match}, else {book.otherwise}")
    data = {"rules": rows, "match": book.match, "otherwise": book.otherwise}
    return Outcome(data, "\n".join(lines))


def _test(arguments: argparse.Namespace) -> Outcome:
    from dicom_node import scu, serve
    from dicom_node.routing import trial

    config = settings_of(arguments)
    paths = [one for each in arguments.files for one in _files(each, scu.find_dicom)]
    if not paths:
        raise BadInput(f"no DICOM file in {', '.join(map(str, arguments.files))}")
    told = serve.trial(config).of_files(paths)
    return Outcome({"studies": told}, "\n".join(map(trial.describe, told)))


def _files(path: Path, find: Any) -> list[Path]:  # noqa: ANN401 - of `scu`, which is heavy
    return list(find(path)) if path.is_dir() else [path]
