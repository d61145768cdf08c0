"""Work in processes: on one thread each, and none outlives who began it.

Knows how processes are begun and ended; not what they do.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import TypeVar

import torch

from model.errors import ModelError

Work = TypeVar("Work")
Done = TypeVar("Done")


def each_of(run: Callable[[Work], Done], works: Iterable[Work], workers: int) -> Iterator[Done]:
    """Run every work in one of so many processes, as they come to it; 1: in this one.

    Raises
    ------
    ModelError
        A process died.
    """
    if workers == 1:
        yield from map(run, works)
        return
    # A fork would copy torch's threads in whatever state they are.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_begin)
    try:
        for each in as_completed([pool.submit(run, work) for work in works]):
            yield each.result()
    except BrokenProcessPool as error:
        raise ModelError(
            "a process died, perhaps for want of memory: use fewer workers; "
            "the next run goes on where this one stopped"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """Begin a process: on one thread, as there are others, and not longer than who began it.

    Killed, that one cannot say so, and this one would wait for work for ever.
    """
    torch.set_num_threads(1)
    threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
