"""A campaign of fuzzing: cases by their number, found and kept, going on where it was broken off.

Knows targets, and a folder of states. Each block of cases runs in a process of its own, so that a
crash or a hang of it is a finding like any other, with the number of the case.
"""

import base64
import gc
import itertools
import json
import mmap
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from .targets import TARGETS, Case, Found, Target

STUCK_S = 90.0  # a case, and the process with it
BLOCK = 5000
EVERY = 250  # cases between looks at the whole, and between samples of memory
WARM = 1000  # cases until the memory is that of use
GROWTH_MB = 24.0  # within a block after that
KEPT_EACH, KEPT_BYTES = 3, 6000
Tell = Callable[[str], None]


class TooLong(Found):
    """A case took too long."""


def run(name: str, cases: int, seed: int, folder: Path, tell: Tell) -> dict[str, Any]:
    """Run a target until so many cases are done; give its state, which also lies in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{seed}.json"
    state: dict[str, Any] = (
        json.loads(path.read_text())
        if path.exists()
        else {"target": name, "seed": seed, "done": 0, "outcomes": {}, "found": [], "kept": [],
              "memory_mb": [], "seconds": 0.0}
    )  # fmt: skip
    while state["done"] < cases:
        begin = time.monotonic()
        end = min(cases, state["done"] + BLOCK)
        _merge(state, _block(name, seed, state["done"], end))
        state["seconds"] += time.monotonic() - begin
        _write(path, state)
        rate = (end - state["done"] or state["done"]) / max(state["seconds"], 0.001)
        tell(
            f"{name:<12} {state['done']:>7} of {cases}  {rate:6.0f}/s  found {len(state['found'])}"
        )
    return state


def _merge(state: dict[str, Any], block: Mapping[str, Any]) -> None:
    state["done"] = block["done"]
    state["outcomes"] = dict(Counter(state["outcomes"]) + Counter(block["outcomes"]))
    known = {each["what"] for each in state["found"]}
    for each in block["found"]:
        if each["what"] not in known or len(state["found"]) < 20:
            state["found"].append(each)
    counted = Counter(each["said"] for each in state["kept"])
    for each in block["kept"]:
        if counted[each["said"]] < KEPT_EACH:
            counted[each["said"]] += 1
            state["kept"].append(each)
    state["memory_mb"].append(block["memory_mb"])


def _block(name: str, seed: int, begin: int, end: int) -> dict[str, Any]:
    """Run cases in a process of their own; one that dies has found something with its last."""
    context = multiprocessing.get_context("spawn")
    with tempfile.NamedTemporaryFile(dir=_fast()) as file:
        file.write(bytes(8))
        file.flush()
        reader, writer = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(name, seed, begin, end, file.name, writer))
        child.start()
        writer.close()
        told = _watch(child, reader, Path(file.name))
        at = int.from_bytes(Path(file.name).read_bytes(), "little")
    if told is not None:
        return told
    what = f"the process ended with {child.exitcode}"
    case = TARGETS[name](Path()).make(_random(name, seed, at))
    return {
        "done": max(at + 1, begin + 1), "outcomes": {"crash": 1}, "memory_mb": [],
        "found": [_found(at, what, case)], "kept": [],
    }  # fmt: skip


def _watch(child: Any, reader: Any, file: Path) -> dict[str, Any] | None:
    last, since = b"", time.monotonic()
    while not reader.poll(1.0):
        now = file.read_bytes()
        if now != last:
            last, since = now, time.monotonic()
        if not child.is_alive() and not reader.poll():
            return None
        if time.monotonic() - since > STUCK_S:
            child.kill()
            child.join()
            return None
    try:
        told: dict[str, Any] = reader.recv()
    except EOFError:
        child.join()
        return None
    child.join()
    return told


def _child(name: str, seed: int, begin: int, end: int, place: str, writer: Any) -> None:
    warnings.simplefilter("ignore")
    sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - what pydicom and zlib say
    _stay_small()
    with (
        tempfile.TemporaryDirectory(prefix="lamed-fuzz-", dir=_fast()) as folder,
        TARGETS[name](Path(folder)) as target,
        open(place, "r+b") as file,  # noqa: PTH123 - mapped
        mmap.mmap(file.fileno(), 8) as at,
    ):
        writer.send(_cases(target, seed, begin, end, at))


def _stay_small() -> None:
    """Let a bomb end in MemoryError and not in the end of the machine."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))


def _cases(target: Target, seed: int, begin: int, end: int, at: mmap.mmap) -> dict[str, Any]:
    outcomes: Counter[str] = Counter()
    found: list[dict[str, Any]] = []
    kept: list[dict[str, Any]] = []
    memory: list[float] = []
    for index in range(begin, end):
        at[:8] = index.to_bytes(8, "little")
        case = target.make(_random(target.name, seed, index))
        try:
            with limited(target.limit_s):
                said = target.run(case)
            if outcomes[said] < KEPT_EACH and len(case.content) <= KEPT_BYTES:
                kept.append({"index": index, "said": said, **_text(case)})
        except Exception as error:  # noqa: BLE001 - that is what it looks for
            said = "found"
            found.append(_found(index, _told(error), case))
        outcomes[said] += 1
        if (index + 1) % EVERY == 0:
            memory.append(resident_mb())
            if (index + 1) % (4 * EVERY) == 0:
                _look(target, index, case, found)
    if _grown_mb(memory[WARM // EVERY :]) > GROWTH_MB:
        found.append({"index": end, "what": f"memory grew: {memory} MB"})
    return {"done": end, "outcomes": outcomes, "found": found, "kept": kept, "memory_mb": memory}


def _grown_mb(memory: Sequence[float]) -> float:
    """Tell how far memory crept up; one step is a large case, whose memory is kept for the next."""
    steps = [later - earlier for earlier, later in itertools.pairwise(memory)]
    return sum(steps) - max(steps, default=0.0)


def _look(target: Target, index: int, case: Case, found: list[dict[str, Any]]) -> None:
    try:
        target.check()
    except Exception as error:  # noqa: BLE001 - as above
        found.append(_found(index, _told(error), case))


def _told(error: BaseException) -> str:
    if isinstance(error, Found):
        return str(error)
    trace = error.__traceback__
    places = []
    while trace:
        places.append(f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return f"{type(error).__name__} at {' < '.join(reversed(places[-4:]))}: {str(error)[:200]}"


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Interrupt what takes longer, in the main thread."""

    def late(_: int, __: FrameType | None) -> None:
        raise TooLong(f"it takes more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def resident_mb() -> float:
    """Tell how much memory this process has now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20), 1)


def _random(name: str, seed: int, index: int) -> Random:
    return Random(f"{name}:{seed}:{index}")


def _found(index: int, what: str, case: Case) -> dict[str, Any]:
    return {"index": index, "what": what, **(_text(case) if len(case.content) < 200_000 else {})}


def _text(case: Case) -> dict[str, str]:
    squeezed = base64.b85encode(zlib.compress(case.content, 9)).decode()
    return {**asdict(case), "content": squeezed}


def case_of(told: Mapping[str, str]) -> Case:
    """Read a case from what a state or the corpus says."""
    content = zlib.decompress(base64.b85decode(told["content"]))
    return Case(content, told["syntax"], told["sop_class_uid"], told["sop_uid"])


def _write(path: Path, state: Mapping[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(state, indent=1))
    partial.replace(path)


def _fast() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # no disk is worn out
