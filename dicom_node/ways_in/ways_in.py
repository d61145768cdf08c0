"""The ways in besides C-STORE, as the settings want them: put together for the process of the SCP.

    STOW-RS          stow_port       pulls           [[sources]]
    watched folder   watch_dir       expectations    IAN, MPPS; [[sources]] with expects

All of them write one spool, whose locks are those of one process.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from dicom_node.config import Config
from dicom_node.config.sources import Source
from dicom_node.ledger import Ledger
from dicom_node.spool import Spool, room


def threads(
    config: Config, ledger: Ledger, spool: Spool, stop: threading.Event
) -> list[threading.Thread]:
    """Give the loops, as threads that are not started."""
    telling = partial(room.run, spool.has_room, ledger, stop)
    found = [threading.Thread(target=telling, name="room")]
    if config.watch_dir:
        from .watched import Watched

        most = config.maximum_instance_mb << 20
        watching = Watched(Path(config.watch_dir), spool, ledger, most)
        found.append(threading.Thread(target=watching.run, args=(stop,), name="watched"))
    if config.sources:
        from . import expectations, pull

        pulling = partial(pull.run, ledger, config, spool, stop)
        found.append(threading.Thread(target=pulling, name="pull"))
        for each in config.sources:
            if each.expects:
                count = partial(_count, ledger, each, config)
                asking = partial(expectations.run, ledger, each.name, count, stop)
                found.append(threading.Thread(target=asking, name=f"expects {each.name}"))
    return found


def _count(ledger: Ledger, source: Source, config: Config, study_uid: str) -> int | None:
    """Ask how many instances a source has of a study, without those that we sent there."""
    from . import expectations, holdings

    ours = expectations.ours_elsewhere(ledger, study_uid)
    if not ours:
        return holdings.count(source, config, study_uid)
    return len(set(holdings.instances(source, config, study_uid)) - ours) or None


@contextmanager
def stow(config: Config, ledger: Ledger, spool: Spool, api_token: str) -> Iterator[int]:
    """Serve STOW-RS while it is entered; give its port, 0 if it is off.

    Raises
    ------
    Unavailable
        The port is taken, or the address is not ours.
    """
    if not config.stow_port:
        yield 0
        return
    from dicom_node.qa import Server

    from . import stow_in

    app = stow_in.create_app(
        spool,
        ledger,
        api_token=api_token,
        most=config.maximum_instance_mb << 20,
        silence_s=config.network_timeout_s,
    )
    with Server(app, config.http_host, config.stow_port) as server:
        yield server.port
