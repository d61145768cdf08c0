"""What a destination gets: the labels that each profile chooses, and what is refused."""

import pytest

from sr_templates import GENERIC, PROFILES, Profile, TemplateError, chosen

MADE = (
    "seg",
    "measurements",
    "draft",
    "seg.weasis.1",
    "seg.weasis.2",
    "measurements.weasis",
    "draft.weasis",
    "measurements.ohif",
    "draft.legacy-pacs",
    "pdf",
    "key-images.1",
    "key-images.2",
    "presentation",
    "key-objects",
)


def test_a_generic_pacs_gets_the_three_objects_and_nothing_made_for_others() -> None:
    assert chosen(GENERIC, MADE) == ("seg", "measurements", "draft")


def test_what_was_made_for_a_profile_takes_the_place_of_what_all_get() -> None:
    assert chosen(PROFILES["ohif"], MADE) == ("seg", "draft", "measurements.ohif")
    weasis = chosen(PROFILES["weasis"], MADE)
    assert weasis == (
        "seg.weasis.1",
        "seg.weasis.2",
        "measurements.weasis",
        "draft.weasis",
        "key-objects",
    )


def test_a_pacs_of_old_gets_no_seg_but_text_page_and_pictures() -> None:
    assert chosen(PROFILES["legacy-pacs"], MADE) == (
        "draft.legacy-pacs",
        "pdf",
        "key-images.1",
        "key-images.2",
        "presentation",
        "key-objects",
    )


def test_a_profile_is_checked_when_it_is_made() -> None:
    with pytest.raises(TemplateError, match=r"segmentation must be one of .* not 'binary'"):
        Profile("mine", segmentation="binary")  # type: ignore[arg-type]
    with pytest.raises(TemplateError, match="measurements refer to a SEG"):
        Profile("mine", segmentation=None)
    with pytest.raises(TemplateError, match="maximum_frames must be 0 or more"):
        Profile("mine", maximum_frames=-1)
    with pytest.raises(TemplateError, match="extras must be one of"):
        Profile("mine", extras=("film",))
