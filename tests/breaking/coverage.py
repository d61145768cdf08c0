"""`python -m tests.breaking coverage`: what is guided by coverage, with atheris.

Knows the readers of bytes that have no process of their own: a proposal, a command set, a data set,
the size of a frame. Needs atheris (`pip install atheris`), which is no dependency of the tests.
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any


def run(arguments: argparse.Namespace) -> int:
    import atheris

    warnings.simplefilter("ignore")
    with atheris.instrument_imports(include=["dicom_node"]):
        from dicom_node.errors import BadInput, Mismatch, NotDicom
        from dicom_node.network import upper_layer
        from dicom_node.network.dimse import Command
        from dicom_node.spool import header
        from dicom_node.volume import codestream

    readers: dict[str, tuple[Callable[[bytes], Any], tuple[type[Exception], ...]]] = {
        "proposal": (upper_layer.decode_proposal, (upper_layer.Violation,)),
        "command": (Command.decode, (BadInput,)),
        "explicit": (lambda data: header.read(data, "1.2.840.10008.1.2.1"), (NotDicom, Mismatch)),
        "implicit": (lambda data: header.read(data, "1.2.840.10008.1.2"), (NotDicom, Mismatch)),
        "frame": (codestream.size, (ValueError,)),
    }
    read, refusals = readers[arguments.reader]

    def one(content: bytes) -> None:
        with suppress(*refusals):
            read(content)

    seeds = _seeds(arguments)
    options = [f"-runs={arguments.runs}", f"-seed={arguments.seed}", "-rss_limit_mb=2048"]
    atheris.Setup([sys.argv[0], *options, "-timeout=10", "-verbosity=1", str(seeds)], one)
    atheris.Fuzz()
    return 0


def _seeds(arguments: argparse.Namespace) -> Any:
    """Put valid ones where it begins from."""
    from . import data_sets, speech

    folder = arguments.folder / arguments.reader
    folder.mkdir(parents=True, exist_ok=True)
    asked = [(speech.CT, [speech.EXPLICIT]), (speech.VERIFICATION, [speech.IMPLICIT])]
    whole = {
        "proposal": speech.proposal(asked, b"LAMED", b"SCANNER", 16_382).encode()[6:],
        "command": speech.command(speech.C_STORE, speech.CT, "1.2.3", data=True).encode(),
        "explicit": data_sets.models()[0].content,
        "implicit": data_sets.models()[1].content,
        "frame": b"\xff\x4f\xff\x51" + bytes(60),
    }
    (folder / "whole").write_bytes(whole[arguments.reader])
    return folder
