"""Peers of other makers: what they send, as they send it, is stored as it came.

DCMTK's senders, one association for each image as dcm4che's tools make them, pynetdicom, the
smallest and the largest PDUs, TLS with the profiles that DCMTK has, and every transfer syntax.
"""

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pydicom
import pytest
from certificates import Authority, Pem
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom import AE, build_role
from pynetdicom.sop_class import CTImageStorage, Verification

from dicom_node.config import Config
from dicom_node.demo import sample
from dicom_node.ledger import Ledger
from dicom_node.scp import Scp
from dicom_node.spool import Spool

Tool = Callable[[str], str]
HOST = "127.0.0.1"
# Those that DCMTK proposes by an option of its own; with dcmsend whatever the files have.
PROPOSED = {
    ExplicitVRLittleEndian: "-xe",
    ExplicitVRBigEndian: "-xb",
    ImplicitVRLittleEndian: "-xi",
    DeflatedExplicitVRLittleEndian: "-xd",
    RLELossless: "-xr",
    JPEG2000Lossless: "-xv",
    JPEGLSLossless: "-xt",
}
COUNT = 4


def ran(*command: object) -> str:
    done = subprocess.run(
        list(map(str, command)), check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def written(folder: Path, syntax: str = ExplicitVRLittleEndian, seed: int = 0) -> list[Path]:
    shape = (COUNT, 32, 32)
    return sample.write(sample.series(shape=shape, transfer_syntax=syntax, seed=seed), folder)


def as_sent(ledger: Ledger, paths: list[Path], syntax: str | None = None) -> None:
    """Hold what was stored against what was sent, to the last element and pixel.

    `syntax` is what the sender makes of the files' own; None: it sends them as they are.
    """
    sent = {str(each.SOPInstanceUID): each for each in map(pydicom.dcmread, paths)}
    stored = ledger.instances(str(next(iter(sent.values())).StudyInstanceUID))
    assert {each.sop_uid for each in stored} == set(sent)
    for each in stored:
        there = pydicom.dcmread(each.path)
        if syntax:  # bytes of pixels may have changed their order, but no pixel
            assert (there.pixel_array == sent[each.sop_uid].pixel_array).all()
            there.PixelData = sent[each.sop_uid].PixelData
        assert there == sent[each.sop_uid]
        own = sent[each.sop_uid].file_meta.TransferSyntaxUID
        assert there.file_meta.TransferSyntaxUID == each.transfer_syntax_uid == (syntax or own)


@pytest.mark.parametrize("syntax", PROPOSED)
def test_storescu_sends_every_transfer_syntax(
    scp: Scp, ledger: Ledger, tool: Tool, tmp_path: Path, syntax: str
) -> None:
    paths = written(tmp_path / "in", syntax)
    ran(tool("storescu"), PROPOSED[syntax], "-aec", "LAMED", HOST, scp.port, *paths)
    as_sent(ledger, paths)


@pytest.mark.parametrize("syntax", PROPOSED)
def test_dcmsend_sends_every_transfer_syntax(
    scp: Scp, ledger: Ledger, tool: Tool, tmp_path: Path, syntax: str
) -> None:
    paths = written(tmp_path / "in", syntax)
    never = ["--decompress-never"]
    ran(tool("dcmsend"), *never, "-aec", "LAMED", HOST, scp.port, *paths)
    # What is not compressed it sends in the first one that is accepted.
    plain = {ImplicitVRLittleEndian, ExplicitVRBigEndian}
    as_sent(ledger, paths, ExplicitVRLittleEndian if syntax in plain else None)


@pytest.mark.parametrize("size", [4096, 16_384, 131_072])
@pytest.mark.parametrize("program", ["storescu", "dcmsend"])
def test_dcmtk_with_pdus_of_many_sizes(
    scp: Scp, ledger: Ledger, tool: Tool, tmp_path: Path, program: str, size: int
) -> None:
    paths = written(tmp_path / "in")
    options = ["--max-pdu", size, "-aec", "LAMED"]
    if program == "storescu":
        options += ["--max-send-pdu", size]
    ran(tool(program), *options, HOST, scp.port, *paths)
    as_sent(ledger, paths)


@pytest.mark.parametrize("maximum", [0, 4096, 16_382, 1 << 20])
def test_pynetdicom_with_pdus_of_any_size(
    scp: Scp, ledger: Ledger, tmp_path: Path, maximum: int
) -> None:
    paths = written(tmp_path / "in")
    ae = AE("SCANNER")
    ae.maximum_pdu_size = maximum
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    ae.add_requested_context(Verification)
    assoc = ae.associate(HOST, scp.port, ae_title="LAMED", max_pdu=maximum)
    assert assoc.send_c_echo().Status == 0
    assert {assoc.send_c_store(each).Status for each in paths} == {0}
    assoc.release()
    as_sent(ledger, paths)


def test_one_association_for_each_image(
    scp: Scp, ledger: Ledger, tool: Tool, tmp_path: Path
) -> None:
    paths = written(tmp_path / "in")
    for each in paths:
        ran(tool("storescu"), "-aec", "LAMED", HOST, scp.port, each)
    as_sent(ledger, paths)
    kinds = [each.kind for each in ledger.events()]
    assert kinds.count("association.released") == COUNT


def test_each_image_in_a_context_of_its_own_and_roles_that_nobody_needs(
    scp: Scp, ledger: Ledger, tmp_path: Path
) -> None:
    paths = [
        path
        for number, syntax in enumerate((ImplicitVRLittleEndian, RLELossless, JPEGLSLossless))
        for path in written(tmp_path / str(number), syntax)[number : number + 1]
    ]
    ae = AE("ARCHIVE")
    for each in paths:
        syntax = pydicom.dcmread(each).file_meta.TransferSyntaxUID
        ae.add_requested_context(CTImageStorage, syntax)
    roles = [build_role(CTImageStorage, scu_role=True, scp_role=True)]
    assoc = ae.associate(HOST, scp.port, ae_title="LAMED", ext_neg=roles)
    assert {assoc.send_c_store(each).Status for each in paths} == {0}
    assoc.release()
    as_sent(ledger, paths)


def test_a_whole_abort_in_the_middle_of_a_series_keeps_what_was_acknowledged(
    scp: Scp, ledger: Ledger, tmp_path: Path
) -> None:
    paths = written(tmp_path / "in")
    ae = AE("SCANNER")
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    assoc = ae.associate(HOST, scp.port, ae_title="LAMED")
    assert assoc.send_c_store(paths[0]).Status == 0
    assoc.abort()
    as_sent(ledger, paths[:1])


@pytest.mark.parametrize("program", ["findscu", "movescu", "getscu"])
def test_who_asks_us_for_images_is_told_that_we_serve_none(
    scp: Scp, tool: Tool, program: str
) -> None:
    query = ["-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=1.2.3"]
    done = subprocess.run(
        [tool(program), *query, "-aec", "LAMED", HOST, str(scp.port)],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "No Acceptable Presentation Contexts" in said or "presentation context" in said.lower()
    ran(tool("echoscu"), "-aec", "LAMED", HOST, scp.port)


# --- TLS ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Secured:
    scp: Scp
    ca: Authority
    scanner: Pem

    def options(self) -> list[object]:
        return ["+tls", self.scanner.key, self.scanner.certificate, "+cf", self.ca.path]


@pytest.fixture(params=["bcp195", "modified"])
def secured(
    request: pytest.FixtureRequest, config: Config, spool: Spool, ledger: Ledger, tmp_path: Path
) -> Iterator[Secured]:
    ca = Authority(tmp_path / "ca")
    settings = ca.issue("node").settings | {"tls_ca": str(ca.path), "tls_profile": request.param}
    with Scp(replace(config, **settings), spool, ledger) as scp:
        yield Secured(scp, ca, ca.issue("scanner"))


PROFILES = ("--profile-bcp195", "--profile-bcp195-nd", "--profile-bcp195-ex")


@pytest.mark.parametrize("profile", PROFILES)
def test_dcmtk_speaks_tls_by_each_of_its_profiles(
    secured: Secured, ledger: Ledger, tool: Tool, tmp_path: Path, profile: str
) -> None:
    paths = written(tmp_path / "in")
    if (
        profile
        not in subprocess.run(
            [tool("storescu"), "--help"], check=False, capture_output=True, text=True
        ).stdout
    ):
        pytest.skip(f"this DCMTK has no {profile}")
    to = ["-aec", "LAMED", HOST, secured.scp.port]
    ran(tool("storescu"), *secured.options(), profile, *to, *paths)
    as_sent(ledger, paths)


def test_movescu_brings_images_from_a_pacs_to_us(
    scp: Scp, ledger: Ledger, tool: Tool, tmp_path: Path
) -> None:
    from orthanc_server import free_ports

    paths = written(tmp_path / "in")
    folder, port = tmp_path / "pacs", free_ports(1)[0]
    folder.mkdir()
    (folder / "db").mkdir()
    settings = folder / "dcmqrscp.cfg"
    settings.write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 4\n"
        f"HostTable BEGIN\nlamed = (LAMED, {HOST}, {scp.port})\nHostTable END\n"
        "VendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nPACS {folder / 'db'} RW (100, 1024mb) ANY\nAETable END\n"
    )
    ran(tool("dcmqridx"), folder / "db", *paths)
    server = subprocess.Popen([tool("dcmqrscp"), "-c", str(settings)], stderr=subprocess.DEVNULL)
    try:
        study = str(pydicom.dcmread(paths[0]).StudyInstanceUID)
        query = ["-S", "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}"]
        command = [tool("movescu"), *query, "-aet", "LAMED", "-aem", "LAMED", "-aec", "PACS"]
        for _ in range(50):
            done = subprocess.run(
                [*map(str, command), HOST, str(port)], check=False, capture_output=True, timeout=60
            )
            if done.returncode == 0 and ledger.instances(study):
                break
        as_sent(ledger, paths)
    finally:
        server.terminate()
        server.wait(30)
