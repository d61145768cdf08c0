import pytest
from pydicom import Dataset

from sr_templates import Algorithm, TemplateError
from sr_templates.provenance import uid
from tests.drafts import ALGORITHM, encoded, untrained


def content(sr: Dataset, code: str) -> set[str]:
    """Return every text or UID in the tree that has this concept name."""
    found = set()
    for item in sr.get("ContentSequence", ()):
        if item.ConceptNameCodeSequence[0].CodeValue == code:
            found.add(str(item.get("TextValue") or item.get("UID")))
        found |= content(item, code)
    return found


def test_every_object_names_the_same_maker_wherever_it_names_one() -> None:
    made = encoded()
    name, source, version = {ALGORITHM.model}, {ALGORITHM.source}, {ALGORITHM.release}
    for each in made.values():
        (item,) = each.ContributingEquipmentSequence
        assert item.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
        for place in (item, each):
            assert {place.Manufacturer} == source
            assert {place.ManufacturerModelName} == name
            assert {place.SoftwareVersions} == version
            assert place.DeviceSerialNumber == ALGORITHM.sha256
        assert item.DeviceUID == each.InstanceCreatorUID == ALGORITHM.device_uid
    for sr in (made["measurements"], made["draft"]):
        assert content(sr, "121012") == {ALGORITHM.device_uid}
        assert content(sr, "121013") == content(sr, "121015") == name
        assert content(sr, "121014") == source
    assert content(made["measurements"], "111001") == name
    assert content(made["measurements"], "111003") == version
    assert content(made["measurements"], "122405") == source
    for segment in made["seg"].SegmentSequence:
        (item,) = segment.SegmentationAlgorithmIdentificationSequence
        assert {item.AlgorithmName, segment.SegmentAlgorithmName} == name
        assert {item.AlgorithmVersion} == version
        assert {item.AlgorithmSource} == source
        assert item.AlgorithmFamilyCodeSequence[0].CodeValue == "123110"
        assert item.AlgorithmParameters == f"weights_sha256={ALGORITHM.sha256},decoding=greedy"


def test_other_weights_are_another_device() -> None:
    other = Algorithm("LaMed", "1.2.3", "1f" * 32)
    assert other.device_uid != ALGORITHM.device_uid
    assert Algorithm("Other", "9", "1f" * 32).device_uid == other.device_uid


def test_a_uid_is_made_of_a_uuid() -> None:
    assert uid("a", "b") == uid("a", "b")
    assert uid("a", "b") != uid("a", "c")
    assert uid("a").startswith("2.25.")
    assert 0 < int(uid("a").removeprefix("2.25.")) < 1 << 128


def test_an_untrained_model_says_so_in_every_object_and_place() -> None:
    for label, each in encoded(algorithm=untrained()).items():
        assert "UNTRAINED" in each.SeriesDescription, label
        assert "UNTRAINED" in each.ManufacturerModelName
        assert "UNTRAINED" in each.ContributingEquipmentSequence[0].ManufacturerModelName
        for segment in each.get("SegmentSequence", ()):
            assert "UNTRAINED" in segment.SegmentDescription
            assert "UNTRAINED" in segment.SegmentAlgorithmName
        if "ContentSequence" in each:
            assert all("UNTRAINED" in name for name in content(each, "121015"))


def test_a_trained_model_says_nothing_of_the_kind() -> None:
    for each in encoded().values():
        assert "UNTRAINED" not in str(each)


def test_a_name_that_says_it_already_does_not_say_it_twice() -> None:
    assert Algorithm("tiny (untrained)", "1", "00" * 32, untrained=True).model == "tiny (untrained)"


def test_values_fit_where_they_are_written() -> None:
    long = Algorithm(
        "n" * 100,
        "1\\2\n3",
        "00" * 32,
        manufacturer="m" * 100,
        untrained=True,
        parameters={"window": "a=1, b=2", "empty": None},
    )
    assert long.model == f"UNTRAINED {'n' * 54}"
    assert long.release == "1/2 3"
    assert long.source == "m" * 64
    assert long.settings["window"] == "a:1; b:2"
    assert long.settings["empty"] == "None"


@pytest.mark.parametrize("digest", ["", "00", "zz" * 32, "AB" * 32])
def test_a_digest_must_be_sha256(digest: str) -> None:
    with pytest.raises(TemplateError, match="64 lower-case hex digits"):
        Algorithm("LaMed", "1", digest)


@pytest.mark.parametrize("key", ["name", "version", "manufacturer"])
def test_an_algorithm_without_a_name_version_or_maker_is_refused(key: str) -> None:
    values = {"name": "LaMed", "version": "1", "manufacturer": "us", "sha256": "00" * 32}
    with pytest.raises(TemplateError, match=f"must have a {key}"):
        Algorithm(**(values | {key: " \n"}))
