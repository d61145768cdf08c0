"""The command line `lamed-node`: the only place, with `serve`, where the parts are put together.

Exit codes: 0 done, 2 usage or settings, 3 bad input, 4 peer or resource unavailable, 5 internal.
``--json`` on every command prints one JSON document (a line for each event in ``ledger``).
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from . import config as settings
from .config import Config, Destination
from .errors import BadInput, ConfigError, NodeError

USAGE_ERROR = 2


@dataclass(frozen=True)
class Outcome:
    """What a command has to say: for a program and for a person."""

    data: Any
    text: str
    exit_code: int = 0


Command = Callable[[argparse.Namespace], Outcome | None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if arguments.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    command: Command = arguments.command
    try:
        outcome = command(arguments)
    except NodeError as error:
        return _fail(arguments, str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail(arguments, "interrupted", 130)
    except BrokenPipeError:  # the reader of our output has had enough
        return 0
    if outcome is None:
        return 0
    sys.stdout.write(_json(outcome.data) if arguments.json else outcome.text.rstrip() + "\n")
    return outcome.exit_code


def _fail(arguments: argparse.Namespace, message: str, code: int) -> int:
    if arguments.json:
        sys.stdout.write(_json({"error": message, "exit_code": code}))
    sys.stderr.write(f"lamed-node: {message}\n")
    return code


def _json(data: Any) -> str:  # noqa: ANN401 - whatever json can write
    return json.dumps(data, ensure_ascii=False, indent=2, default=str) + "\n"


def _config(arguments: argparse.Namespace) -> Config:
    return settings.load(arguments.config)


# --- the node in service ------------------------------------------------------------------------


def _serve(arguments: argparse.Namespace) -> None:
    from . import serve

    config = _config(arguments)
    if arguments.only:
        serve.role(arguments.only, config, parent=arguments.parent)
        return
    serve.serve(config, arguments.config, lambda ports: _greet(arguments, config, ports))


def _greet(arguments: argparse.Namespace, config: Config, ports: dict[str, int]) -> None:
    from . import serve

    told = {
        "ae_title": config.ae_title,
        "dicom": f"{config.dicom_host}:{ports['scp']}",
        "http": f"http://{config.http_host}:{ports['qa']}",
        "data_dir": str(config.data_dir.resolve()),
        "checkpoint": str(serve.checkpoint_folder(config)),
        "login": _first_login_link(config, ports["qa"]),
    }
    if arguments.json:
        sys.stdout.write(_json(told))
    else:
        width = max(map(len, told))
        sys.stdout.writelines(f"{key:<{width}}  {value}\n" for key, value in told.items() if value)
        sys.stdout.write("ready; Ctrl-C drains and stops\n")
    sys.stdout.flush()


def _first_login_link(config: Config, port: int) -> str:
    """Print a link only if none was ever made: each is a key to the pages."""
    from . import serve
    from .ledger import Ledger

    with Ledger(config.ledger_path) as ledger:
        first = not ledger.token_was_issued("login")
    return serve.login_link(config, port) if first else ""


def _demo(arguments: argparse.Namespace) -> None:
    from . import demo

    stay = sys.stdout.isatty() if arguments.stay is None else arguments.stay
    demo.run(arguments.out, cache=arguments.cache, stay=stay)


def _login_link(arguments: argparse.Namespace) -> Outcome:
    from . import serve

    config = _config(arguments)
    link = serve.login_link(config, config.http_port)
    return Outcome({"link": link}, link)


# --- without a network --------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> Outcome:
    from . import offline

    summary = offline.run(
        arguments.folder,
        _config_with(arguments),
        protocol=arguments.protocol,
        out=arguments.out,
        tell=_progress(arguments),
    )
    return Outcome(summary, offline.describe(summary))


def _ask(arguments: argparse.Namespace) -> Outcome:
    from . import offline

    answer = offline.ask(
        arguments.folder,
        arguments.question,
        _config_with(arguments),
        out=arguments.out,
        tell=_progress(arguments),
    )
    return Outcome(answer, offline.describe_answer(answer))


def _config_with(arguments: argparse.Namespace) -> Config:
    from dataclasses import replace

    config = _config(arguments)
    return replace(config, checkpoint=str(arguments.checkpoint)) if arguments.checkpoint else config


def _progress(arguments: argparse.Namespace) -> Callable[[str], None]:
    def tell(text: str) -> None:
        if not arguments.json:
            sys.stderr.write(f"  {text}\n")

    return tell


def _send(arguments: argparse.Namespace) -> Outcome:
    from . import scu

    config = _config(arguments)
    paths = scu.find_dicom(arguments.folder)
    if not paths:
        raise BadInput(f"no DICOM file in {arguments.folder}")
    total = len(paths)

    def tell(sent: int) -> None:
        if not arguments.json and sys.stderr.isatty():
            sys.stderr.write(f"\r  {sent} of {total} instances" + ("\n" if sent == total else ""))

    scu.send(
        paths,
        arguments.to,
        calling_ae=config.ae_title,
        timeout_s=config.network_timeout_s,
        on_progress=tell,
    )
    return Outcome(
        {"sent": total, "to": str(arguments.to)}, f"{total} instances stored by {arguments.to}"
    )


# --- about the node -----------------------------------------------------------------------------


def _check(arguments: argparse.Namespace) -> Outcome:
    from . import check

    findings = check.run(arguments.config)
    worst = max((each.exit_code for each in findings if not each.ok), default=0)
    return Outcome([asdict(each) for each in findings], check.describe(findings), worst)


def _show_config(arguments: argparse.Namespace) -> Outcome:
    rows = settings.describe(arguments.config)
    width = max(len(row.name) for row in rows)
    text = "\n".join(
        f"{row.name:<{width}}  {row.value or '(empty)'}   [{row.origin}]\n{'':<{width}}  {row.help}"
        for row in rows
    )
    return Outcome([asdict(row) for row in rows], text)


def _ledger_verify(arguments: argparse.Namespace) -> Outcome:
    with _open_ledger(arguments) as ledger:
        count = ledger.verify(head=arguments.head)
        seq, digest = ledger.head()
    return Outcome(
        {"events": count, "head": f"{seq}:{digest}"},
        f"{count} events, the chain is whole\nhead {seq}:{digest}"
        "\nnote the head elsewhere: with --head a cut-off end is found too",
    )


def _ledger_export(arguments: argparse.Namespace) -> None:
    from . import ledger_export

    with _open_ledger(arguments) as ledger:
        ledger_export.export(
            ledger.events(study_uid=arguments.study), sys.stdout, as_json=arguments.json
        )


def _ledger_tail(arguments: argparse.Namespace) -> None:
    from . import ledger_export

    with _open_ledger(arguments) as ledger:
        ledger_export.follow(ledger, sys.stdout, as_json=arguments.json, once=arguments.once)


def _open_ledger(arguments: argparse.Namespace) -> Any:  # noqa: ANN401 - Ledger, imported late
    from .ledger import Ledger

    config = _config(arguments)
    if not config.ledger_path.exists():
        raise ConfigError(f"no ledger at {config.ledger_path}; is data_dir right?")
    return Ledger(config.ledger_path)


def _checkpoint_import(arguments: argparse.Namespace) -> Outcome:
    from . import offline

    card = offline.import_checkpoint(arguments.source, arguments.out)
    return Outcome(card, f"{card['name']} {card['sha256']}\nwritten to {arguments.out}")


# --- the grammar --------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lamed-node", description="CT and MR studies in, draft SR and SEG out."
    )
    parser.add_argument("--version", action="version", version=version("lamed-node"))
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")

    _serving(verbs)
    _reading(verbs)
    _verb(verbs, "check", _check, "doctor: settings, ports, peers, ledger, model, disk")
    _verb(verbs, "config", _show_config, "every setting: value, where it came from, help")
    _remembering(verbs)
    return parser


def _serving(verbs: Any) -> None:  # noqa: ANN401 - argparse has no public name for it
    serve = _verb(verbs, "serve", _serve, "SCP, worker and QA pages; Ctrl-C drains")
    serve.add_argument("--only", choices=("scp", "worker", "qa"), help="one role in this process")
    serve.add_argument("--parent", type=int, help=argparse.SUPPRESS)

    demo = _verb(verbs, "demo", _demo, "the main job once: a sample study there and back")
    demo.add_argument("--out", type=Path, default=Path("run"), help="folder for what came back")
    demo.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "lamed-node")
    demo.add_argument("--stay", action=argparse.BooleanOptionalAction, help="keep the node up")

    _verb(verbs, "login-link", _login_link, "a new one-time link to the QA pages")


def _reading(verbs: Any) -> None:  # noqa: ANN401 - argparse has no public name for it
    run = _verb(verbs, "run", _run, "a folder of DICOM in, SR and SEG files and summary.json out")
    run.add_argument("folder", type=Path, metavar="DIR")
    run.add_argument("--protocol", default="", help="name; default: routing decides")
    run.add_argument("--checkpoint", type=Path, help="folder of the checkpoint")
    run.add_argument("--out", type=Path, required=True)

    ask = _verb(verbs, "ask", _ask, "one question to one series")
    ask.add_argument("folder", type=Path, metavar="DIR")
    ask.add_argument("question")
    ask.add_argument("--checkpoint", type=Path, help="folder of the checkpoint")
    ask.add_argument("--out", type=Path, help="folder for the mask as SEG, if one is drawn")

    send = _verb(verbs, "send", _send, "a folder over a real association")
    send.add_argument("folder", type=Path, metavar="DIR")
    send.add_argument("--to", type=_peer, required=True, metavar="AET@HOST:PORT")


def _remembering(verbs: Any) -> None:  # noqa: ANN401 - argparse has no public name for it
    ledger = verbs.add_parser("ledger", help="the audit log").add_subparsers(
        required=True, metavar="VERB"
    )
    verify = _verb(ledger, "verify", _ledger_verify, "check the hash chain")
    verify.add_argument("--head", type=_head, help="SEQ:DIGEST noted earlier; must still be there")
    export = _verb(ledger, "export", _ledger_export, "all events as CSV, or JSON lines")
    export.add_argument("--study", help="only this StudyInstanceUID")
    tail = _verb(ledger, "tail", _ledger_tail, "follow the events")
    tail.add_argument("--once", action="store_true", help="the last ones, then end")

    checkpoint = verbs.add_parser("checkpoint", help="model checkpoints").add_subparsers(
        required=True, metavar="VERB"
    )
    importing = _verb(checkpoint, "import", _checkpoint_import, "verify and rewrite a released one")
    importing.add_argument("source", metavar="SRC", help="folder, or id of a model on the hub")
    importing.add_argument("--out", type=Path, required=True)


def _verb(verbs: Any, name: str, command: Command, text: str) -> argparse.ArgumentParser:  # noqa: ANN401 - as above
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
    parser.set_defaults(command=command)
    parser.add_argument("--config", type=Path, help="TOML file of settings")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument("--verbose", action="store_true", help="log to standard error")
    return parser


def _peer(text: str) -> Destination:
    try:
        return Destination.parse(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _head(text: str) -> tuple[int, str]:
    seq, _, digest = text.partition(":")
    if not (seq.isdigit() and digest):
        raise argparse.ArgumentTypeError(f"a head is SEQ:DIGEST, not {text!r}")
    return int(seq), digest


if __name__ == "__main__":
    sys.exit(main())
