"""Destinations and profiles, as settings have them and as the node understands them."""

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as settings_of
from hypothesis import strategies as st

from dicom_node import config as settings
from dicom_node import profiles, serve
from dicom_node.config import Config, Destination, SiteProfile
from dicom_node.config.destinations import named
from dicom_node.errors import ConfigError
from sr_templates import GENERIC, PROFILES

PACS, VIEWER = Destination("PACS", "10.0.0.5", 104), Destination("VIEWER", "localhost", 4242)


def load(toml: str, folder: Path, environ: Mapping[str, str] | None = None) -> Config:
    path = folder / "node.toml"
    path.write_text(toml, encoding="utf-8")
    return settings.load(path, environ or {})


# --- destinations -------------------------------------------------------------------------------


TABLES = """
[[destinations]]
ae_title = "PACS"
host = "10.0.0.5"
port = 104
[[destinations]]
ae_title = "VIEWER"
host = "localhost"
port = 4242
"""


def test_destinations_are_the_same_as_tables_as_texts_and_as_a_variable(tmp_path: Path) -> None:
    text = "PACS@10.0.0.5:104, VIEWER@localhost:4242,"
    assert load(TABLES, tmp_path).destinations == (PACS, VIEWER)
    listed = 'destinations = ["PACS@10.0.0.5:104", "VIEWER@localhost:4242"]'
    assert load(listed, tmp_path).destinations == (PACS, VIEWER)
    assert load(f'destinations = "{text}"', tmp_path).destinations == (PACS, VIEWER)
    assert settings.load(environ={"LAMED_DESTINATIONS": text}).destinations == (PACS, VIEWER)
    assert settings.load(environ={"LAMED_DESTINATIONS": ""}).destinations == ()


@pytest.mark.parametrize(
    "text", ["PACS", "PACS@host", "@host:104", "PACS@:104", "PACS@host:", "PACS@host:x", "A@b:-1"]
)
def test_what_is_no_destination_is_quoted(text: str) -> None:
    with pytest.raises(ConfigError, match=f"AET@HOST:PORT/PROFILE, not '{text}'"):
        Destination.parse(text)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ('ae_title = "PACS"\nhost = "h"', "has ae_title, host, port and perhaps"),
        ('ae_title = "P"\nhost = "h"\nport = 104\ncolour = 1', "has ae_title, host, port and perh"),
        ('ae_title = "P"\nhost = "h"\nport = 104\ntls = 1', "tls .* must be true or false, not 1"),
        ('ae_title = "P"\nhost = "h"\nport = 104\nproof = "yes"', "auto, .*, none, not 'yes'"),
        ('ae_title = "P"\nhost = "h"\nport = 104\nattempts = -1', "0 to 1000, not -1"),
        ('ae_title = "P"\nhost = "h"\nport = 104\ntoken_file = "t"', "with a url"),
        ('url = "ftp://h"', "http:// or https:// with a host, .*not 'ftp://h'"),
        ('url = "https://me@h/x"', "neither query nor user"),
        ('url = "https://h"\nport = 1', "has a url, or ae_title, host, port"),
        ('url = "https://h"\nproof = "commitment"', "over HTTP the proof is auto, query or none"),
        ('url = "https://h"\ntoken_file = "t"\nuser_file = "u"', "not both"),
        ('url = "https://h"\nuser_file = 5', "name a file, not 5"),
        ('ae_title = "PACS"\nhost = "h"\nport = "104"', "whole number, 1 to 65535, not '104'"),
        ('ae_title = "PACS"\nhost = "h"\nport = 104.5', "whole number, 1 to 65535, not 104.5"),
        ('ae_title = "PACS"\nhost = "h"\nport = true', "whole number, 1 to 65535, not True"),
        ('ae_title = "PACS"\nhost = "h"\nport = 0', "1 to 65535, not 0"),
        ('ae_title = "PACS"\nhost = "h"\nport = 65536', "1 to 65535, not 65536"),
        ('ae_title = "PACS"\nhost = ""\nport = 104', "host name or an address"),
        ('ae_title = "PACS"\nhost = 10\nport = 104', "host name or an address, not 10"),
        ('ae_title = 5\nhost = "h"\nport = 104', "AE title of 1-16 characters"),
        (
            'ae_title = "A"\nhost = "h"\nport = 1\nprofile = 5',
            "profile .* a-z, 0-9 and -, .* not 5",
        ),
    ],
)
def test_a_destination_that_could_never_be_reached_is_refused_at_once(
    table: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=told):
        load(f"[[destinations]]\n{table}", tmp_path)


def test_a_destination_may_speak_tls_or_be_a_url(tmp_path: Path) -> None:
    told = """
    [[destinations]]
    ae_title = "PACS"
    host = "192.0.2.5"
    port = 2762
    tls = true
    proof = "commitment"
    attempts = 5
    [[destinations]]
    url = "https://pacs.example/dicom-web"
    profile = "ohif"
    token_file = "~/token"
    """
    secured, web = load(told, tmp_path).destinations
    assert secured == Destination(
        "PACS", "192.0.2.5", 2762, tls=True, proof="commitment", attempts=5
    )
    assert (str(secured), str(web)) == (
        "PACS@192.0.2.5:2762+tls",
        "https://pacs.example/dicom-web#ohif",
    )
    texts = f"{secured},{web}"
    assert list(map(str, settings.load(environ={"LAMED_DESTINATIONS": texts}).destinations)) == [
        str(secured),
        str(web),
    ]


def test_what_the_ledger_calls_a_destination_finds_all_that_is_set_for_it() -> None:
    secured = Destination("PACS", "192.0.2.5", 2762, tls=True, proof="none")
    plain = Destination("PACS", "192.0.2.5", 2762)
    assert named((plain, secured), str(secured)) is secured
    # One that is set no more is never called without the TLS that it had.
    assert named((), str(secured)) == replace(secured, proof="auto")


def test_one_table_where_a_list_is_expected_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"destinations must be a list, not {'ae_title'"):
        load('[destinations]\nae_title = "PACS"\nhost = "h"\nport = 104', tmp_path)
    with pytest.raises(ConfigError, match="calling_ae_titles must be a list, not 5"):
        load("calling_ae_titles = 5", tmp_path)
    with pytest.raises(ConfigError, match=r"calling_ae_titles must be an AE title .*not 5"):
        load("calling_ae_titles = [5]", tmp_path)


@settings_of(deadline=None)  # a busy machine is no slow function
@given(
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters="\\"),
            min_size=1, max_size=16).filter(lambda each: each == each.strip()),
    st.sampled_from(["localhost", "10.0.0.5", "::1", "fe80::1%eth0", "pacs.hospital.example"]),
    st.integers(1, 65535),
    st.sampled_from(["generic-pacs", "ohif", "a1-b"]),
    st.booleans(),
)  # fmt: skip
def test_a_destination_reads_back_as_it_is_written(
    title: str,
    host: str,
    port: int,
    profile: str,
    tls: bool,  # noqa: FBT001 - drawn
) -> None:
    destination = Destination(title, host, port, profile, tls=tls)
    assert Destination.parse(str(destination)) == destination


def test_an_ipv6_address_may_stand_in_brackets() -> None:
    assert Destination.parse("PACS@[::1]:104") == Destination("PACS", "::1", 104)


# --- profiles -----------------------------------------------------------------------------------


def test_a_destination_says_what_it_can_show(tmp_path: Path) -> None:
    told = TABLES.replace("port = 4242", 'port = 4242\nprofile = "ohif"')
    viewer = replace(VIEWER, profile="ohif")
    assert load(told, tmp_path).destinations == (PACS, viewer)
    text = "PACS@10.0.0.5:104,VIEWER@localhost:4242/ohif"
    config = settings.load(environ={"LAMED_DESTINATIONS": text})
    assert config.destinations == (PACS, viewer)
    assert [str(each) for each in config.destinations] == text.split(",")
    assert profiles.of(config) == [GENERIC, PROFILES["ohif"]]


@pytest.mark.parametrize("name", ["", "OHIF", "a.b", "7", "a b", "a" * 33])
def test_a_profile_has_a_name_that_can_be_part_of_a_label(name: str) -> None:
    with pytest.raises(ConfigError, match="1-32 characters a-z"):
        Destination("PACS", "host", 104, name)
    with pytest.raises(ConfigError, match="1-32 characters a-z"):
        SiteProfile(name)


MINE = """
[[profiles]]
name = "mine"
like = "weasis"
segmentation = "FRACTIONAL"
omit_empty_frames = false
extras = ["pdf"]
[[profiles]]
name = "words"
like = "mine"
segmentation = "none"
measurements = "none"
"""


def test_a_site_describes_profiles_of_its_own(tmp_path: Path) -> None:
    config = load(
        MINE + '[[destinations]]\nae_title="A"\nhost="h"\nport=1\nprofile="mine"', tmp_path
    )
    known = profiles.known(config)
    mine = known["mine"]
    assert (mine.segmentation, mine.omit_empty_frames, mine.extras) == (
        "FRACTIONAL",
        False,
        ("pdf",),
    )
    assert mine.maximum_frames == PROFILES["weasis"].maximum_frames
    assert (known["words"].segmentation, known["words"].measurements) == (None, None)
    assert known["words"].extras == ("pdf",)
    assert profiles.of(config) == [GENERIC, mine]
    assert profiles.named(config, ["words", "ohif"]) == [known["words"], PROFILES["ohif"]]
    assert profiles.named(config, []) == [GENERIC]


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ('name = "ohif"', "ohif is taken, give yours another name"),
        ('name = "a"\nlike = "b"', "a is like one of generic-pacs, ohif, .*, not 'b'"),
        ('name = "a"\ncolour = 1', "a has 'colour'; there are name, like, segmentation, "),
        ('name = "a"\nsegmentation = "PNG"', "segmentation must be one of BINARY, .*, not 'PNG'"),
        ('name = "a"\nsegmentation = 1', "segmentation of a must be a text, not 1"),
        ('name = "a"\nsegmentation = "none"', "a: measurements refer to a SEG, there is none"),
        (
            'name = "a"\nmaximum_frames = true',
            "maximum_frames of a must be a whole number, not True",
        ),
        ('name = "a"\nmaximum_frames = -1', "maximum_frames must be 0 or more"),
        (
            'name = "a"\nomit_empty_frames = 0',
            "omit_empty_frames of a must be true or false, not 0",
        ),
        ('name = "a"\nextras = "pdf"', "extras of a must be a list of texts, not 'pdf'"),
        ('name = "a"\nextras = ["film"]', "extras must be one of pdf, .*, not 'film'"),
    ],
)
def test_a_profile_that_nobody_could_follow_is_refused_at_the_start(
    table: str, told: str, tmp_path: Path
) -> None:
    config = load(f"[[profiles]]\n{table}", tmp_path)
    with pytest.raises(ConfigError, match=told):
        profiles.known(config)


def test_a_profile_is_a_table_of_the_file(tmp_path: Path) -> None:
    for told in ('profiles = ["ohif"]', "[[profiles]]\nlike = 'ohif'"):
        with pytest.raises(ConfigError, match=r"a profile is a table \[\[profiles\]\]"):
            load(told, tmp_path)
    with pytest.raises(ConfigError, match=r"a profile is a table \[\[profiles\]\]"):
        settings.load(environ={"LAMED_PROFILES": "ohif"})


def test_a_node_does_not_start_with_a_profile_that_there_is_not(config: Config) -> None:
    wrong = replace(config, destinations=(replace(PACS, profile="siemens"),))
    told = r"profile of PACS@10\.0\.0\.5:104/siemens must be one of generic-pacs, ohif, .*'siemens'"
    with pytest.raises(ConfigError, match=told), serve.running(wrong, threading.Event()):
        pass
    with pytest.raises(ConfigError, match=r"--profile must be one of generic-pacs, .*'siemens'"):
        profiles.named(config, ["siemens"])
