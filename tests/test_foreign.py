import struct
from io import BytesIO

import pytest
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag
from pydicom.uid import CTImageStorage

from sr_templates import foreign

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def image(**values: object) -> Dataset:
    source = Dataset()
    source.SOPClassUID = CTImageStorage
    source.PatientID = "7"
    for keyword, value in values.items():
        setattr(source, keyword, value)
    return source


def reread(source: Dataset) -> Dataset:
    """Return the data set as a reader meets it: raw values, not yet converted."""
    buffer = BytesIO()
    source.save_as(buffer, implicit_vr=False, little_endian=True)
    buffer.seek(0)
    return dcmread(buffer, force=True)


def test_control_and_direction_characters_leave_a_text() -> None:
    assert foreign.text("a\x00b\x1b[31m\u202ec\u2028d\ud800", 100) == "a b [31mc d"


def test_the_joiners_of_persian_and_indian_words_stay() -> None:
    assert foreign.text("می\u200cشود क्\u200dष \u200fx\u2067", 100) == "می\u200cشود क्\u200dष x"


def test_a_hundred_thousand_characters_of_anything_become_a_text() -> None:
    for each in (
        "<b onclick='x'>" * 7000,
        "\u202e\x00\r\n" * 25_000,
        "é" * 100_000,
        "\n" * 100_000,
    ):
        text = foreign.text(each, 4000)
        assert len(text) <= 4000
        assert not {"\x00", "\r", "\u202e"} & set(text)


def test_line_ends_become_one_kind_and_long_gaps_one_empty_line() -> None:
    assert foreign.text("a\r\nb\rc\n\n\n\nd  \n", 100) == "a\nb\nc\n\nd"


def test_a_text_that_is_too_long_says_that_it_was_cut() -> None:
    cut = foreign.text("word " * 100, 50)
    assert len(cut) <= 50
    assert cut.endswith(" [...]")


def test_a_line_is_a_single_value_of_lo() -> None:
    assert foreign.line("a\\b\n c" + "d" * 100) == "a/b c" + "d" * 59


def test_what_is_valid_is_copied_exactly() -> None:
    source = image(PatientName="Müller^Jürgen=山田", StudyDate="20260102", PatientWeight="70.5")
    source.SpecificCharacterSet = "ISO_IR 192"
    clean = foreign.header(reread(source))
    assert str(clean.PatientName) == "Müller^Jürgen=山田"
    assert clean.StudyDate == "20260102"
    assert clean.PatientWeight.original_string == "70.5"


def test_missing_type_2_values_become_empty() -> None:
    clean = foreign.header(image())
    for keyword in foreign.EXPECTED:
        assert keyword in clean
    assert clean.PatientID == "7"
    assert clean.StudyID == ""


def test_an_impossible_date_or_sex_becomes_empty_and_other_dirt_is_left_out() -> None:
    source = image(StudyDate="1.2.2026", PatientSex="X", PatientAge="seventy", BodyPartExamined="a")
    clean = foreign.header(reread(source))
    assert clean.StudyDate == ""
    assert clean.PatientSex == ""
    assert "PatientAge" not in clean
    assert "BodyPartExamined" not in clean


def test_a_decimal_string_that_is_no_number_is_left_out() -> None:
    source = image()
    for tag, value in ((0x00101020, b"about 1.7 "), (0x00101030, b"80.250000000000000")):
        source[tag] = RawDataElement(
            BaseTag(tag), "DS", len(value), value, 0, is_implicit_VR=False, is_little_endian=True
        )
    clean = foreign.header(source)
    assert "PatientSize" not in clean
    assert str(clean.PatientWeight) == "80.25"


def test_a_comment_keeps_its_lines_and_loses_what_commands_a_terminal() -> None:
    clean = foreign.header(
        image(PatientComments="one\r\ntwo", AdditionalPatientHistory="a\x07b\nc")
    )
    assert clean.PatientComments == "one\r\ntwo"
    assert clean.AdditionalPatientHistory == "a b\nc"


def test_a_physician_has_five_components_and_a_patient_as_many_as_came() -> None:
    clean = foreign.header(
        image(ReferringPhysicianName="Who^A^B^Dr^PhD^x^y", PatientName="Who^^^^^^")
    )
    assert str(clean.ReferringPhysicianName) == "Who^A^B^Dr^PhD"
    assert str(clean.PatientName) == "Who^^^^^^"


def test_a_name_does_not_depend_on_how_the_source_was_written_last() -> None:
    source = image(SpecificCharacterSet="ISO_IR 144", PatientName="Щербаков^Юрий")
    clean = foreign.header(source)
    reread(source)
    clean.SpecificCharacterSet = "ISO_IR 192"
    assert str(reread(clean).PatientName) == "Щербаков^Юрий"


def test_an_empty_side_is_left_out_and_a_side_kept() -> None:
    assert "Laterality" not in foreign.header(image(Laterality=""))
    assert foreign.header(image(Laterality="L")).Laterality == "L"


def test_an_over_long_description_is_cut_but_never_an_identifier() -> None:
    clean = foreign.header(
        reread(image(StudyDescription="d" * 70, PatientID="1" * 70, AccessionNumber="2" * 20))
    )
    assert clean.StudyDescription == "d" * 64
    assert clean.PatientID == "1" * 70
    assert clean.AccessionNumber == "2" * 20


def test_a_control_character_leaves_a_name() -> None:
    clean = foreign.header(reread(image(PatientName="Doe^Ja\x1bne", StudyDescription="CT\x07 A")))
    assert str(clean.PatientName) == "Doe^Ja ne"
    assert clean.StudyDescription == "CT A"


def test_a_number_with_too_many_digits_is_rounded() -> None:
    clean = foreign.header(reread(image(PatientWeight="70.500000000000000001")))
    assert len(str(clean["PatientWeight"].value)) <= 16
    assert float(clean.PatientWeight) == 70.5


def test_an_illegal_uid_stays_the_same() -> None:
    clean = foreign.header(reread(image(StudyInstanceUID="1.02.3")))
    assert clean.StudyInstanceUID == "1.02.3"


def test_codes_without_meaning_and_empty_items_are_left_out() -> None:
    bare, whole = Dataset(), Dataset()
    bare.CodeValue = "1"
    whole.CodeValue, whole.CodingSchemeDesignator, whole.CodeMeaning = "2", "99X", "CT"
    both = foreign.header(image(ProcedureCodeSequence=[bare, whole, Dataset()]))
    assert [each.CodeValue for each in both.ProcedureCodeSequence] == ["2"]
    assert "ProcedureCodeSequence" not in foreign.header(image(ProcedureCodeSequence=[Dataset()]))


def test_private_elements_and_pixels_stay_behind() -> None:
    source = image(PixelData=b"\0\0")
    source["PixelData"].VR = "OW"
    source.private_block(0x0011, "US", create=True).add_new(1, "LO", "secret")
    clean = foreign.header(source)
    assert "PixelData" not in clean
    assert not [element for element in clean if element.tag.is_private]


def test_the_source_is_not_changed() -> None:
    source = image(StudyDate="1.2.2026", StudyDescription="d" * 70, PatientSex="X")
    before = source.to_json()
    clean = foreign.header(source)
    clean.PatientID = "8"
    assert source.to_json() == before


def test_frames_are_not_thinned_out() -> None:
    source = image(PerFrameFunctionalGroupsSequence=[Dataset(), Dataset()])
    assert len(foreign.header(source).PerFrameFunctionalGroupsSequence) == 2


# Bytes as PS3.5 annexes H to K give them, or as scanners of these lands write them.
NAMES = [
    ("ISO_IR 100", b"M\xfcller^J\xfcrgen", "Müller^Jürgen"),
    ("ISO_IR 144", b"\xb8\xd2\xd0\xdd\xde\xd2^\xb8\xd2\xd0\xdd", "Иванов^Иван"),
    ("ISO_IR 126", b"\xc4\xe9\xef\xed\xf5\xf3\xe9\xef\xf2", "Διονυσιος"),
    (
        "\\ISO 2022 IR 87",
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
        "Yamada^Tarou=山田^太郎=やまだ^たろう",
    ),
    (
        "ISO 2022 IR 13\\ISO 2022 IR 87",
        (
            b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J="
            b"\x1b$B$d$^$@\x1b(J^\x1b$B$?$m$&\x1b(J"
        ),
        "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
    ),
    (
        "\\ISO 2022 IR 149",
        (
            b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7="
            b"\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf"
        ),
        "Hong^Gildong=洪^吉洞=홍^길동",
    ),
    ("GB18030", b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab=", "Wang^XiaoDong=王^小东"),
    ("GBK", b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab=", "Wang^XiaoDong=王^小东"),
    (
        "\\ISO 2022 IR 58",
        b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=",
        "Zhang^XiaoDong=张^小东",
    ),
    ("ISO_IR 192", "Wang^XiaoDong=王^小東".encode(), "Wang^XiaoDong=王^小東"),
]


@pytest.mark.parametrize(("character_set", "name", "shown"), NAMES)
def test_a_name_of_any_character_set_is_written_in_utf_8_with_its_groups(
    character_set: str, name: bytes, shown: str
) -> None:
    clean = foreign.header(in_bytes(character_set, name))
    clean.SpecificCharacterSet = "ISO_IR 192"
    read = reread(clean)
    assert str(read.PatientName).rstrip("=") == shown
    assert read.OtherPatientIDsSequence[0].PatientID.rstrip("=") == shown


def in_bytes(character_set: str, name: bytes) -> Dataset:
    """Return an image whose patient's name is these bytes, and what an item of it repeats."""
    item = element(0x0010, 0x0020, b"LO", name)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item
    header = element(0x0008, 0x0005, b"CS", character_set.encode())
    header += element(0x0010, 0x0010, b"PN", name)
    header += struct.pack("<HH2sHI", 0x0010, 0x1002, b"SQ", 0, len(item)) + item
    return dcmread(BytesIO(header), force=True)


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    padded = value + b" " * (len(value) % 2)
    return struct.pack("<HH2sH", group, number, vr, len(padded)) + padded


def test_a_name_in_latin_1_is_written_in_utf_8() -> None:
    source = image(PatientName="Müller^Jürgen")
    source.SpecificCharacterSet = "ISO_IR 100"
    clean = foreign.header(reread(source))
    clean.SpecificCharacterSet = "ISO_IR 192"
    buffer = BytesIO()
    clean.save_as(buffer, implicit_vr=False, little_endian=True)
    assert "Müller^Jürgen".encode() in buffer.getvalue()
