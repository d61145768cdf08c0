from pathlib import Path
from typing import Any

import pytest

from dicom_node import config as settings
from dicom_node.config import Config, Destination
from dicom_node.config.sources import Source, named
from dicom_node.errors import ConfigError

PACS = Source("PACS", Destination("PACS", "192.0.2.5", 104), "c-get")
AT = {"ae_title": "PACS", "host": "192.0.2.5", "port": 104}


def test_sources_are_tables_of_the_settings_file(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(
        '[[sources]]\nname = "PACS"\nae_title = "PACS"\nhost = "192.0.2.5"\nport = 104\n'
        '[[sources]]\nname = "Archive"\nurl = "https://archive.example/dicom-web"\n'
        'token_file = "/run/secrets/archive"\nexpects = true\n'
    )
    pacs, archive = settings.load(path, {}).sources
    assert pacs == PACS
    assert (archive.method, archive.expects) == ("wado-rs", True)
    assert archive.peer.token_file == "/run/secrets/archive"
    assert str(pacs) == "PACS: PACS@192.0.2.5:104 by c-get"


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("PACS@192.0.2.5:104", "table"),
        (AT, "name"),
        ({**AT, "name": "A", "metod": "c-get"}, "metod"),
        ({**AT, "name": " A"}, "name of a source"),
        ({**AT, "name": 7}, "name of a source"),
        ({**AT, "name": "A", "method": "wado-rs"}, "c-get or c-move"),
        ({"name": "A", "url": "https://a.example", "method": "c-get"}, "wado-rs"),
        ({**AT, "name": "A", "expects": "yes"}, "expects of source A"),
        ({**AT, "name": "A", "port": 0}, "port"),
        ({"name": "A", "url": "file:///etc/passwd"}, "url"),
    ],
)
def test_what_is_no_source_is_said(table: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Source.read(table)


def test_a_source_is_found_by_its_name_and_the_known_ones_are_told() -> None:
    assert named([PACS], "PACS") is PACS
    with pytest.raises(ConfigError, match=r"'OTHER'.*has PACS"):
        named([PACS], "OTHER")


def test_two_sources_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="name of its own"):
        Config(sources=(PACS, PACS))
