import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from dicom_node.config import Config
from dicom_node.demo import sample
from dicom_node.ledger import Ledger
from dicom_node.scp import Scp
from dicom_node.spool import Spool
from model import tiny

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A shell lets what it runs in the background ignore Ctrl-C, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Small networks: threads that wait for each other on a busy machine cost more than they bring.
torch.set_num_threads(1)


@pytest.fixture
def tool() -> Callable[[str], str]:
    """Find a real program; a missing one is a skip on a desk and a failure with CI=true."""

    def find(name: str) -> str:
        # pynetdicom brings programs of the same names as DCMTK's into the environment.
        places = ["/usr/bin", "/usr/sbin", str(Path(sys.executable).parent)]
        if name in {"dciodvfy", "dcentvfy"}:
            places.reverse()
        found = shutil.which(name, path=os.pathsep.join(places))
        if found is None:
            missing(f"the program {name}")
        return str(found)

    return find


def missing(what: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing")
    pytest.skip(f"{what} is missing")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The untrained tiny checkpoint; made once for all tests, and not to be changed."""
    folder = tmp_path_factory.mktemp("checkpoint") / tiny.NAME
    tiny.init(folder)
    return folder


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder whose packages are all that pip knows."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for name, value in {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder),
        "PIP_RETRIES": "0",
    }.items():
        monkeypatch.setenv(name, value)
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(
        dicom_port=0,
        http_port=0,
        data_dir=tmp_path / "node",
        minimum_free_mb=1,
        network_timeout_s=5,
    )


@pytest.fixture
def ledger(config: Config) -> Iterator[Ledger]:
    with Ledger(config.ledger_path) as opened:
        yield opened


@pytest.fixture
def spool(config: Config, ledger: Ledger) -> Spool:
    return Spool(config.spool_dir, ledger, minimum_free_mb=config.minimum_free_mb)


@pytest.fixture
def scp(config: Config, ledger: Ledger, spool: Spool) -> Iterator[Scp]:
    with Scp(config, spool, ledger) as started:
        yield started


@pytest.fixture
def ct_files(tmp_path: Path) -> list[Path]:
    return sample.write(sample.series(shape=(5, 16, 16)), tmp_path / "ct")
