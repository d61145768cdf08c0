"""Images per second from DCMTK's storescu: large and small ones, one, four and eight associations.

Tuned is a sender without Nagle's algorithm (TCP_NODELAY=1 in DCMTK's environment), untuned is the
one of a stock DCMTK. Ours is durable: each file and each ledger row is on the disk before the
sender hears 0x0000; Orthanc syncs its files too, the others sync nothing.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from pynetdicom.presentation import StoragePresentationContexts

from tests.raw_peer import RELEASE_RQ, RawPeer, request

from .lab import OURS, Lab, Missing, Subject, files
from .peers import RECEIVERS, TUNED, Receiver, resident_mb

BENCH = "receiving"
STORESCU = "/usr/bin/storescu"  # pynetdicom brings a program of the same name
ACCEPTED = 2  # A-ASSOCIATE-AC
# What a PACS proposes that may send anything: every storage class, each uncompressed and in JPEG.
PROPOSED = [
    (str(each.abstract_syntax), ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.70"])
    for each in StoragePresentationContexts
]
SMALL = 32  # rows and columns: the header is most of it


def run(lab: Lab) -> None:
    if not Path(STORESCU).exists():
        lab.missing.add("storescu (apt: dcmtk)")
        return
    large = lab.ct(lab.size(200, 8), lab.size(512, 64))
    small = lab.ct(lab.size(1000, 8), SMALL)
    with lab.scratch() as scratch, ExitStack() as stack:
        receivers = _receivers(lab, Path(scratch), stack)
        cases = [
            (each, kind) for each in (True, False) for kind in (("CT", large), ("small", small))
        ]
        for tuned, (kind, folder) in cases[::3] if lab.quick else cases:
            # Untuned, most receivers take 40 ms for each image: fewer of them tell as much.
            paths = list(files(folder))[: None if tuned else lab.size(100, 4)]
            for associations in (2,) if lab.quick else (1, 4, 8):
                _case(lab, kind, paths, associations, receivers, tuned=tuned)
        lab.turns(
            BENCH,
            f"association with {len(PROPOSED)} contexts, opened and released",
            {name: partial(_set_up, each, lab.size(200, 4)) for name, each in receivers.items()},
        )
        if OURS in receivers:
            growth = partial(_growth, receivers[OURS], list(files(small)), lab.size(10, 1))
            case = f"memory over {lab.size(10_000, 8)} instances"
            lab.turns(BENCH, case, {OURS: growth}, rounds=1)


def _set_up(receiver: Receiver, count: int) -> dict[str, float]:
    """Open and release associations, one after the other, as fast as the receiver can."""
    proposal = request(PROPOSED, called=receiver.ae_title)
    start = time.perf_counter()
    for _ in range(count):
        with RawPeer(receiver.port) as peer:
            peer.send(proposal)
            if peer.pdu()[0] != ACCEPTED:
                raise RuntimeError(f"{receiver.ae_title} took no association")
            peer.send(RELEASE_RQ)
            peer.pdu()
    return {"ms": (time.perf_counter() - start) / count * 1000}


def _growth(receiver: Receiver, paths: list[Path], times: int) -> dict[str, float]:
    """Send a series again and again, each time as new images; how much larger it makes us."""
    folder = paths[0].parent
    _send([folder], len(paths), receiver, TUNED)  # what is made once is made now
    before = resident_mb(receiver.process)
    for _ in range(times):
        _send([folder], len(paths), receiver, TUNED)
    return {"MB more": resident_mb(receiver.process) - before}


def _receivers(lab: Lab, scratch: Path, stack: ExitStack) -> dict[str, Receiver]:
    started = {}
    for name, start in RECEIVERS.items():
        try:
            started[name] = stack.enter_context(start(scratch / name))
        except Missing as error:
            lab.missing.add(str(error))
    return started


def _case(
    lab: Lab,
    kind: str,
    paths: list[Path],
    associations: int,
    receivers: dict[str, Receiver],
    *,
    tuned: bool,
) -> None:
    size = paths[0].stat().st_size >> 10
    sender = "tuned" if tuned else "untuned"
    case = f"{len(paths)} {kind} of {size} KB, {associations} assoc., {sender} sender"
    with lab.scratch() as scratch:
        folders = list(_dealt(paths, associations, Path(scratch)))
        environment = TUNED if tuned else {}
        subjects: dict[str, Subject] = {
            name: partial(_send, folders, len(paths), each, environment)
            for name, each in receivers.items()
        }
        lab.turns(BENCH, case, subjects)


def _dealt(paths: list[Path], associations: int, folder: Path) -> Iterator[Path]:
    """Give each association a folder of its own share."""
    for index in range(associations):
        mine = folder / str(index)
        mine.mkdir(parents=True)
        for path in paths[index::associations]:
            shutil.copy(path, mine)
        yield mine


def _send(
    folders: list[Path], count: int, receiver: Receiver, environment: dict[str, str]
) -> dict[str, float]:
    """Send every folder at once; each image is a new one, so that nobody knows it already."""
    to = ["-aec", receiver.ae_title, "127.0.0.1", str(receiver.port)]
    plain = {key: value for key, value in os.environ.items() if key not in TUNED}
    start = time.perf_counter()
    senders = [
        subprocess.Popen(
            [STORESCU, "-R", "+II", *to, "+sd", str(folder)],
            env=plain | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for folder in folders
    ]
    codes = [each.wait() for each in senders]
    seconds = time.perf_counter() - start
    if any(codes):
        raise RuntimeError(f"{receiver.ae_title} did not take every image: {codes}")
    return {"images/s": count / seconds}
