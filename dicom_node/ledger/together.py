"""Group commit: what several threads write at once goes to the disk in one transaction.

Knows threads and how a transaction is begun. Must not know what is written. Who comes while another
one commits waits, and the first of those waiting writes for all of them: nobody waits longer for a
slow disk than two commits, and no thread of its own is needed.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from .transaction import Transaction

Write = Callable[[Transaction], None]


@dataclass(eq=False)
class _Waiting:
    write: Write
    done: bool = False
    error: BaseException | None = None


class Together:
    """Writes of one process.

    Parameters
    ----------
    begin
        Gives a transaction, which is committed at its end, or not at all.
    """

    def __init__(self, begin: Callable[[], AbstractContextManager[Transaction]]) -> None:
        self._begin = begin
        self._turn = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._lock = threading.Lock()

    @contextmanager
    def alone(self) -> Iterator[Transaction]:
        """Give a transaction of one's own; the others of this process wait, without polling."""
        with self._turn, self._begin() as transaction:
            yield transaction

    def write(self, write: Write) -> None:
        """Have this written, and return when it is committed.

        Raises
        ------
        Exception
            What `write` raised, or the commit; then nothing of it is written. It is called a second
            time if the transaction that it shared could not be committed.
        """
        mine = _Waiting(write)
        with self._lock:
            self._waiting.append(mine)
        with self._turn:
            if not mine.done:
                with self._lock:
                    all_of_them, self._waiting = self._waiting, []
                self._commit(all_of_them)
        if mine.error is not None:
            raise mine.error

    def _commit(self, writes: list[_Waiting]) -> None:
        try:
            with self._begin() as transaction:
                for each in writes:
                    each.write(transaction)
        except BaseException as error:  # noqa: BLE001 - handed to whoever asked for it
            if len(writes) > 1:  # whose fault it is shows when each is alone
                for each in writes:
                    self._commit([each])
                return
            writes[0].error = error
        for each in writes:
            each.done = True
