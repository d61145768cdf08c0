from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.errors import BadInput
from dicom_node.network import multipart
from dicom_node.network.multipart import Parts, TooLarge, WrongType

DICOM = "application/dicom"


def body(parts: list[bytes], boundary: bytes = b"XX") -> bytes:
    head = b"--" + boundary + b"\r\nContent-Type: application/dicom\r\n\r\n"
    return b"".join(head + each + b"\r\n" for each in parts) + b"--" + boundary + b"--\r\n"


def fed(content: bytes, size: int, most: int = 1 << 20) -> list[bytes]:
    parts = Parts(b"XX", most=most)
    found = []
    for at in range(0, len(content), size):
        found += [bytes(each) for _, each in parts.feed(content[at : at + size])]
    parts.close()
    return found


# Made of what a boundary is made of: the worst for whoever looks for one.
PIECES = st.lists(st.sampled_from([b"\r", b"\n", b"-", b"--", b"X", b"\r\n--X", b"\x00"]))


@given(st.lists(PIECES.map(b"".join), min_size=1, max_size=4), st.integers(1, 40))
def test_parts_come_out_as_they_went_in_however_the_body_is_cut(
    parts: list[bytes], size: int
) -> None:
    parts = [each.replace(b"\r\n--XX", b"") for each in parts]
    assert fed(body(parts), size) == parts


@given(st.binary(max_size=300), st.integers(1, 40))
def test_any_bytes_are_parts_or_bad_input(content: bytes, size: int) -> None:
    for whole in (content, b"--XX\r\n" + content, body([content])[:-6] + content):
        with suppress(BadInput):  # anything else is a crash
            assert sum(map(len, fed(whole, size))) <= len(whole)


def test_what_follows_the_last_boundary_is_no_part() -> None:
    assert fed(body([b"a"]) + b"an epilogue\r\n--XX\r\n\r\nb\r\n--XX--", 7) == [b"a"]


def test_a_part_may_be_as_large_as_the_limit_and_no_larger() -> None:
    assert fed(body([b"x" * 100, b"y" * 100]), 64, most=100) == [b"x" * 100, b"y" * 100]
    with pytest.raises(TooLarge):
        fed(body([b"x" * 101]), 64, most=100)


def test_a_body_that_ends_too_early_is_told() -> None:
    with pytest.raises(BadInput, match="before its last boundary"):
        fed(body([b"a"])[:-6], 10)


@pytest.mark.parametrize(
    ("said", "boundary"),
    [
        ('multipart/related; type="application/dicom"; boundary=a', b"a"),
        ('Multipart/Related;boundary="a b";TYPE=application/dicom', b"a b"),
        ("multipart/related; boundary=a", b"a"),
    ],
)
def test_the_boundary_is_found(said: str, boundary: bytes) -> None:
    assert multipart.boundary(said, of=DICOM) == boundary


@pytest.mark.parametrize(
    "said", ["", "application/dicom", "multipart/related; type=text/html; boundary=a", ";;;", "x"]
)
def test_another_type_is_told(said: str) -> None:
    with pytest.raises(WrongType, match="expected Content-Type multipart/related"):
        multipart.boundary(said, of=DICOM)


def test_a_type_without_a_boundary_is_bad_input() -> None:
    with pytest.raises(BadInput, match="without a boundary"):
        multipart.boundary("multipart/related", of=DICOM)
