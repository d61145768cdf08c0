"""Images per second to a tuned DCMTK storescp: our SCU, pynetdicom's default, DCMTK's dcmsend."""

import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from .lab import OURS, Lab, Missing, Subject, Values, files, in_process
from .peers import TUNED, Receiver, dcmtk
from .receiving import SMALL

BENCH = "sending"
DCMSEND = "/usr/bin/dcmsend"


def run(lab: Lab) -> None:
    for name, slices, size in (
        ("CT", lab.size(200, 6), lab.size(512, 64)),
        ("small", lab.size(1000, 6), SMALL),
    ):
        folder = lab.ct(slices, size)
        kilobytes = next(files(folder)).stat().st_size >> 10
        with lab.scratch() as scratch:
            try:
                with dcmtk(Path(scratch) / "storescp") as receiver:
                    case = f"{slices} {name} of {kilobytes} KB"
                    lab.turns(BENCH, case, _subjects(lab, receiver, folder, slices))
            except Missing as error:
                lab.missing.add(str(error))


def _subjects(lab: Lab, receiver: Receiver, folder: Path, count: int) -> dict[str, Subject]:
    def rate(function: Callable[..., object]) -> Values:
        measured = in_process(function, receiver.port, folder)
        return {"images/s": count / measured["s"], "MB added": measured["MB added"]}

    subjects: dict[str, Subject] = {OURS: partial(rate, ours), "pynetdicom": partial(rate, plain)}
    if Path(DCMSEND).exists():
        subjects["DCMTK dcmsend"] = partial(_dcmsend, receiver, folder, count)
    else:
        lab.missing.add("dcmsend (apt: dcmtk)")
    return subjects


def ours(port: str, folder: str) -> Callable[[], None]:
    from dicom_node import scu
    from dicom_node.config import Destination

    paths, to = list(files(Path(folder))), Destination("STORESCP", "127.0.0.1", int(port))
    return lambda: scu.send(paths, to, calling_ae="BENCH", timeout_s=30)


def plain(port: str, folder: str) -> Callable[[], None]:
    """Prepare what pynetdicom's documentation shows: read, send, release."""
    from pydicom import dcmread
    from pynetdicom import AE
    from pynetdicom.sop_class import CTImageStorage

    def work() -> None:
        ae = AE(ae_title="BENCH")
        ae.add_requested_context(CTImageStorage)
        assoc = ae.associate("127.0.0.1", int(port), ae_title="STORESCP")
        for path in files(Path(folder)):
            answer = assoc.send_c_store(dcmread(path))
            if answer.get("Status") != 0x0000:
                raise RuntimeError(f"{path.name} got {answer or 'no answer'}")
        assoc.release()

    return work


def _dcmsend(receiver: Receiver, folder: Path, count: int) -> Values:
    start = time.perf_counter()
    subprocess.run(
        [DCMSEND, "+sd", "127.0.0.1", str(receiver.port), str(folder)],
        env=TUNED,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return {"images/s": count / (time.perf_counter() - start)}
