"""The command line `lamed-node`: the only place, with `serve`, where the parts are put together.

Exit codes: 0 done, 2 usage or settings, 3 bad input, 4 peer or resource unavailable, 5 internal.
``--json`` on every command prints one JSON document, also of an error; what follows without end
(``ledger tail``) prints one on each line. Progress and complaints go to standard error.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from . import config as settings
from .commands import deliveries, jobs, keeping, ledger, pull, rules
from .commands.command import Command, Outcome, Parser, common, settings_of, verb
from .config import Config, Destination
from .errors import BadInput, ConfigError, NodeError, Unavailable

log = logging.getLogger(__name__)

INTERRUPTED = 130  # 128 + SIGINT, as shells tell it
OURS = ("dicom_node", "model", "sr_templates")
KNOWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = argparse.Namespace(as_json="--json" in words, told=False)
    try:
        _parser().parse_args(words, arguments)
        command: Command = arguments.command
        _log_to_stderr(verbose=arguments.verbose, serving=command is _serve)
        return _tell(arguments, command(arguments))
    except NodeError as error:
        return _fail(arguments, str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail(arguments, "interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # no room, no right, no such folder
        return _fail(arguments, str(error), Unavailable.exit_code)
    except Exception as error:  # the edge of the program: a script gets its document and its code
        log.exception("internal error")
        return _fail(arguments, f"{type(error).__name__}: {error}", NodeError.exit_code)


def _tell(arguments: argparse.Namespace, outcome: Outcome | None) -> int:
    if outcome is None:
        return 0
    sys.stdout.write(_json(outcome.data) if arguments.as_json else outcome.text.rstrip() + "\n")
    sys.stdout.flush()
    return outcome.exit_code


def _fail(arguments: argparse.Namespace, message: str, code: int) -> int:
    if arguments.as_json and not arguments.told:
        sys.stdout.write(_json({"error": message, "exit_code": code}))
    sys.stderr.write(f"lamed-node: {message}\n")
    return code


def _json(data: Any) -> str:  # noqa: ANN401 - whatever json can write
    # Escaped: a document is one for every locale, and for text that is no text.
    return json.dumps(data, indent=2, default=str) + "\n"


def _log_to_stderr(*, verbose: bool, serving: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Fields("%(asctime)s %(levelname)s %(name)s %(message)s"))
    if not serving:  # what a peer does is told by our own errors, once
        handler.addFilter(lambda record: not record.name.startswith("pynetdicom"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    if verbose:  # ours alone: SQLAlchemy would log every name that it writes
        for name in OURS:
            logging.getLogger(name).setLevel(logging.DEBUG)


class Fields(logging.Formatter):
    """Writes an event with its fields: what died, and why."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one line; a traceback follows it."""
        told = [f"{key}={value}" for key, value in vars(record).items() if key not in KNOWN]
        line, *traceback = super().format(record).split("\n", 1)
        return "\n".join([" ".join([line, *told]), *traceback])


def _progress(text: str) -> None:
    sys.stderr.write(f"  {text}\n")
    sys.stderr.flush()


# --- the node in service ------------------------------------------------------------------------


def _serve(arguments: argparse.Namespace) -> None:
    from . import serve

    if arguments.parent is not None:
        serve.child(arguments.only, arguments.parent)
        return
    config = settings_of(arguments)
    if arguments.only:
        serve.role(arguments.only, config, lambda port: _greet_one(arguments, config, port))
        return
    serve.serve(config, lambda ports: _greet(arguments, config, ports), _progress)


def _greet(arguments: argparse.Namespace, config: Config, ports: dict[str, int]) -> None:
    from . import serve

    card = serve.checkpoint_manifest(config)
    untrained = " (UNTRAINED: its answers mean nothing)" if card.get("untrained") else ""
    _say(
        arguments,
        {
            "ae_title": config.ae_title,
            "dicom": f"{config.dicom_host}:{ports['scp']}",
            "http": serve.url(config, ports["qa"]),
            "data_dir": str(config.data_dir.absolute()),
            "checkpoint": str(serve.checkpoint_folder(config).absolute()),
            "model": f"{card.get('name', 'unnamed')}{untrained}",
            "results_to": ", ".join(map(str, config.destinations)) or "the data folder only",
            "login": serve.first_login_link(config, ports["qa"]),
        },
    )


def _greet_one(arguments: argparse.Namespace, config: Config, port: int) -> None:
    from . import serve

    told = {"role": arguments.only, "data_dir": str(config.data_dir.absolute())}
    if arguments.only == "scp":
        told |= {"ae_title": config.ae_title, "dicom": f"{config.dicom_host}:{port}"}
    if arguments.only == "qa":
        login = serve.first_login_link(config, port)
        told |= {"http": serve.url(config, port), "login": login}
    _say(arguments, told)


def _say(arguments: argparse.Namespace, told: dict[str, str]) -> None:
    """Greet: everything that somebody has to know who has just started it."""
    if arguments.as_json:
        sys.stdout.write(_json(told))
    else:
        width = max(map(len, told))
        sys.stdout.writelines(f"{key:<{width}}  {value}\n" for key, value in told.items() if value)
        sys.stdout.write("ready; Ctrl-C drains and stops\n")
    sys.stdout.flush()
    arguments.told = True


def _demo(arguments: argparse.Namespace) -> None:
    from . import demo

    stay = sys.stdout.isatty() if arguments.stay is None else arguments.stay

    def tell(report: dict[str, Any]) -> None:
        if arguments.as_json:
            sys.stdout.write(_json(report))
            sys.stdout.flush()
            arguments.told = True

    demo.run(arguments.out, cache=arguments.cache, stay=stay, quiet=arguments.as_json, report=tell)


def _login_link(arguments: argparse.Namespace) -> Outcome:
    from . import serve

    link = serve.login_link(settings_of(arguments))
    return Outcome({"link": link}, link)


# --- without a network --------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> Outcome:
    from .commands import offline

    summary = offline.run(
        arguments.folder,
        _config_with(arguments),
        protocol=arguments.protocol,
        shown=arguments.profile,
        out=arguments.out,
        tell=_progress,
    )
    return Outcome(summary, offline.describe(summary))


def _ask(arguments: argparse.Namespace) -> Outcome:
    from .commands import offline

    answer = offline.ask(
        arguments.folder,
        arguments.question,
        _config_with(arguments),
        shown=arguments.profile,
        out=arguments.out,
        tell=_progress,
    )
    return Outcome(answer, offline.describe_answer(answer))


def _config_with(arguments: argparse.Namespace) -> Config:
    config = settings_of(arguments)
    return replace(config, checkpoint=str(arguments.checkpoint)) if arguments.checkpoint else config


def _send(arguments: argparse.Namespace) -> Outcome:
    from . import scu
    from .network import tls

    config = settings_of(arguments)
    paths = scu.find_dicom(arguments.folder)
    if not paths:
        raise BadInput(f"no DICOM file in {arguments.folder}")
    total = len(paths)

    def tell(sent: int) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r  {sent} of {total} instances" + ("\n" if sent == total else ""))

    scu.send(
        paths,
        arguments.to,
        calling_ae=config.ae_title,
        timeout_s=config.network_timeout_s,
        on_progress=tell,
        secured=tls.client_context(config) if arguments.to.tls else None,
    )
    return Outcome(
        {"sent": total, "to": str(arguments.to)}, f"{total} instances stored by {arguments.to}"
    )


def _sample(arguments: argparse.Namespace) -> Outcome:
    from .demo import patients

    told = patients.write(arguments.seed, arguments.out, scan=arguments.scan)
    return Outcome(told, patients.describe(told))


# --- about the node -----------------------------------------------------------------------------


def _check(arguments: argparse.Namespace) -> Outcome:
    from .commands import check

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


def _checkpoint_import(arguments: argparse.Namespace) -> Outcome:
    from .commands import offline

    card = offline.import_checkpoint(arguments.source, arguments.out)
    return Outcome(card, f"{card['name']} {card['sha256']}\nwritten to {arguments.out}")


# --- the grammar --------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="lamed-node", description="CT and MR studies in, draft SR and SEG out.")
    parser.add_argument("--version", action="version", version=version("lamed-node"))
    common(parser)
    parser.set_defaults(config=None, as_json=False, verbose=False)
    verbs = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")

    _serving(verbs)
    _reading(verbs)
    verb(verbs, "check", _check, "doctor: settings, ports, peers, ledger, model, disk")
    verb(verbs, "config", _show_config, "every setting: value, where it came from, help")
    ledger.add(verbs)
    pull.add(verbs)
    deliveries.add(verbs)
    keeping.add(verbs)
    jobs.add(verbs)
    rules.add(verbs)
    _importing(verbs)
    return parser


def _serving(verbs: Any) -> None:  # noqa: ANN401 - argparse has no public name for it
    serve = verb(verbs, "serve", _serve, "SCP, worker and QA pages; Ctrl-C drains")
    serve.add_argument("--only", choices=("scp", "worker", "qa"), help="one role in this process")
    serve.add_argument("--parent", type=int, help=argparse.SUPPRESS)

    demo = verb(verbs, "demo", _demo, "the main job once: a sample study there and back")
    demo.add_argument("--out", type=Path, default=Path("run"), help="folder for what came back")
    demo.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "lamed-node")
    demo.add_argument("--stay", action=argparse.BooleanOptionalAction, help="keep the node up")

    verb(verbs, "login-link", _login_link, "a new one-time link to the QA pages")


def _reading(verbs: Any) -> None:  # noqa: ANN401 - argparse has no public name for it
    run = verb(verbs, "run", _run, "a folder of DICOM in, SR and SEG files and summary.json out")
    run.add_argument("folder", type=Path, metavar="DIR")
    run.add_argument("--protocol", default="", help="name; default: routing decides")
    _add_reader(run)
    run.add_argument("--out", type=Path, required=True, help="folder for what comes of it")

    ask = verb(verbs, "ask", _ask, "one question to one series")
    ask.add_argument("folder", type=Path, metavar="DIR")
    ask.add_argument("question")
    _add_reader(ask)
    ask.add_argument("--out", type=Path, help="folder for the answer as SR, and a mask as SEG")

    send = verb(verbs, "send", _send, "a folder over a real association")
    send.add_argument("folder", type=Path, metavar="DIR")
    send.add_argument("--to", type=_peer, required=True, metavar="AET@HOST:PORT")

    made = verb(verbs, "sample", _sample, "a synthetic patient of whom all is known, as DICOM")
    made.add_argument("--seed", type=int, required=True)
    made.add_argument("--scan", type=Path, metavar="CACHE", help="bent out of a real one kept here")
    made.add_argument("--out", type=Path, required=True, help="folder for the instances")


def _add_reader(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, help="folder of the checkpoint")
    parser.add_argument(
        "--profile",
        action="append",
        default=[],
        metavar="NAME",
        help="write what a destination of this profile gets; more than once for several",
    )


def _importing(verbs: Any) -> None:  # noqa: ANN401 - argparse has no public name for it
    checkpoint = verbs.add_parser("checkpoint", help="model checkpoints").add_subparsers(
        required=True, metavar="VERB", title="verbs"
    )
    importing = verb(checkpoint, "import", _checkpoint_import, "verify and rewrite a released one")
    importing.add_argument("source", metavar="SRC", help="folder, or id of a model on the hub")
    importing.add_argument("--out", type=Path, required=True)


def _peer(text: str) -> Destination:
    try:
        return Destination.parse(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
