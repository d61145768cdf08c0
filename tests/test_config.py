import logging
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import pytest

from dicom_node import config as settings
from dicom_node.config import Config, Destination
from dicom_node.errors import ConfigError

NUMBERS = {
    "dicom_port": (0, 65535),
    "http_port": (0, 65535),
    "stow_port": (0, 65535),
    "maximum_associations": (1, 1000),
    "quiet_s": (0.05, 604_800),
    "open_limit_s": (0.05, 604_800),
    "minimum_free_mb": (0, 1_000_000_000),
    "lease_s": (0.05, 604_800),
    "maximum_attempts": (1, 100),
    "delivery_attempts": (1, 1000),
    "delivery_backoff_s": (0.05, 3600),
    "network_timeout_s": (0.05, 3600),
    "proof_s": (0.05, 604_800),
    "tls_handshake_s": (0.05, 3600),
    "tls_expiry_days": (0, 365),
    "maximum_instance_mb": (1, 4095),
    "retain_spool_days": (0, 36_500),
    "audit_retain_days": (0, 36_500),
    "retain_results_days": (0, 36_500),
    "retain_spool_gb": (0, 1_000_000),
    "retain_results_gb": (0, 1_000_000),
}
SECONDS = sorted(each for each in NUMBERS if isinstance(getattr(Config(), each), float))
COUNTS = sorted(set(NUMBERS) - set(SECONDS))
TEXTS = ("ae_title", "dicom_host", "http_host", "checkpoint", "device", "dtype", "protocols")
TEXTS += ("fallback_protocol", "manufacturer", "validate", "report_text_dir")
TEXTS += ("tls_certificate", "tls_key", "tls_ca", "tls_profile", "tls_client_certificate")
TEXTS += ("audit_syslog", "audit_source", "audit_site")
TEXTS += ("watch_dir",)
TABLED = ("destinations", "profiles", "peers", "sources")
PACS, VIEWER = Destination("PACS", "10.0.0.5", 104), Destination("VIEWER", "localhost", 4242)


def load(toml: str, folder: Path, environ: Mapping[str, str] | None = None) -> Config:
    path = folder / "node.toml"
    path.write_text(toml, encoding="utf-8")
    return settings.load(path, environ or {})


# --- defaults and help --------------------------------------------------------------------------


def test_every_setting_has_a_default_and_a_help_that_names_its_range() -> None:
    assert settings.load(environ={}) == Config()
    rows = {each.name: each for each in settings.describe(environ={})}
    assert list(rows) == [each.name for each in fields(Config)]
    assert set(rows) == {
        "rules",
        *NUMBERS,
        *TEXTS,
        "data_dir",
        "calling_ae_titles",
        "run_record",
        *TABLED,
    } | {"tls_check_hostname", "retain_unproven", "audit_store"}
    for row in rows.values():
        assert (row.value, row.origin) == (row.default, "default")
        assert len(row.help.split()) > 3
        if row.name in NUMBERS:
            assert row.help.endswith("{} to {}".format(*NUMBERS[row.name]))


def test_what_is_set_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Config().quiet_s = 1  # type: ignore[misc]


def test_the_folders_lie_in_the_data_folder() -> None:
    config = Config(data_dir=Path("/somewhere"))
    assert config.spool_dir == Path("/somewhere/spool")
    assert config.results_dir == Path("/somewhere/results")
    assert config.ledger_path == Path("/somewhere/ledger.sqlite")


# --- ranges -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_taken_within_its_range_and_refused_outside(name: str, tmp_path: Path) -> None:
    least, most = NUMBERS[name]
    for value in (least, most):
        assert getattr(load(f"{name} = {value}", tmp_path), name) == value
        assert getattr(settings.load(environ={f"LAMED_{name.upper()}": str(value)}), name) == value
    for value in (least - 0.01 if name in SECONDS else least - 1, most + 1, 10**400, -(10**400)):
        with pytest.raises(ConfigError, match=f"{name} must be .*{most}, not -?{abs(value)}"):
            load(f"{name} = {value}", tmp_path)
        with pytest.raises(ConfigError, match=name):
            settings.load(environ={f"LAMED_{name.upper()}": str(value)})


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "+nan"])
def test_what_is_no_finite_number_is_refused(value: str, tmp_path: Path) -> None:
    for name in NUMBERS:
        with pytest.raises(ConfigError, match=name):
            load(f"{name} = {value}", tmp_path)
        with pytest.raises(ConfigError, match=name):
            settings.load(environ={f"LAMED_{name.upper()}": value})
        with pytest.raises(ConfigError, match=name):
            Config(**{name: float(value)})


@pytest.mark.parametrize("value", ["true", "false", '"5"', "[5]", "{a = 5}", "2026-01-05", '""'])
def test_another_type_than_a_number_is_refused(value: str, tmp_path: Path) -> None:
    for name in NUMBERS:
        with pytest.raises(ConfigError, match=f"{name} must be a"):
            load(f"{name} = {value}", tmp_path)


@pytest.mark.parametrize("value", ["7.0", "7.9", "1e2"])
def test_a_fraction_is_not_cut_to_a_whole_number(value: str, tmp_path: Path) -> None:
    for name in COUNTS:
        with pytest.raises(ConfigError, match=f"{name} must be a whole number"):
            load(f"{name} = {value}", tmp_path)
        with pytest.raises(ConfigError, match=f"{name} must be a whole number"):
            settings.load(environ={f"LAMED_{name.upper()}": value})


@pytest.mark.parametrize("value", ["", "five", "5 s", "true", "0x10", "9" * 5000])
def test_a_variable_that_is_no_number_is_refused(value: str) -> None:
    for name in NUMBERS:
        with pytest.raises(ConfigError, match=f"{name} must be a"):
            settings.load(environ={f"LAMED_{name.upper()}": value})


def test_a_whole_number_of_seconds_is_taken(tmp_path: Path) -> None:
    for name in SECONDS:
        found = getattr(load(f"{name} = 5", tmp_path), name)
        assert (found, type(found)) == (5.0, float)


# --- texts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["true", "5", "1.5", '["A"]', "{a = 1}"])
def test_another_type_than_a_text_is_refused(value: str, tmp_path: Path) -> None:
    for name in [*TEXTS, "data_dir"]:
        with pytest.raises(ConfigError, match=f"{name} must be a"):
            load(f"{name} = {value}", tmp_path)


@pytest.mark.parametrize(
    "title", ["", " ", "A" * 17, "A\\\\B", "ÄRZTE", "A\\nB", " LAMED", "LAMED ", "A\\tB"]
)
def test_what_is_no_ae_title_is_refused_wherever_one_stands(title: str, tmp_path: Path) -> None:
    for toml in (
        f'ae_title = "{title}"',
        f'calling_ae_titles = ["PACS", "{title}"]',
        f'[[destinations]]\nae_title = "{title}"\nhost = "h"\nport = 104',
    ):
        with pytest.raises(ConfigError, match="AE title of 1-16 characters"):
            load(toml, tmp_path)


@pytest.mark.parametrize(
    "title", ["A", "A" * 16, "CT 1", "pacs@site", "~!#$%&'()*+,-./:;<=>?"[:16]]
)
def test_every_ae_title_of_the_standard_is_taken(title: str, tmp_path: Path) -> None:
    config = load(f'ae_title = "{title}"\ncalling_ae_titles = ["{title}"]', tmp_path)
    assert (config.ae_title, config.calling_ae_titles) == (title, (title,))


@pytest.mark.parametrize("host", ["", " ", "a b", "10.0.0.5, 10.0.0.6"])
def test_an_empty_address_does_not_open_every_interface(host: str) -> None:
    for name in ["dicom_host", "http_host"]:
        with pytest.raises(ConfigError, match=f"{name} must be a host name or an address"):
            settings.load(environ={f"LAMED_{name.upper()}": host})


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("device", ["auto", "cpu", "cuda", "cuda:1"], ["", "gpu", "cuda:", "cpu:0", "CUDA"]),
        ("dtype", ["auto", "float32", "bfloat16"], ["", "float16", "fp32"]),
        ("manufacturer", ["ACME", "株式会社", "A" * 64], ["", " ", "A" * 65, "A\\B", "A\nB"]),
    ],
)
def test_a_text_with_rules_keeps_them(name: str, good: list[str], bad: list[str]) -> None:
    for value in good:
        assert getattr(settings.load(environ={f"LAMED_{name.upper()}": value}), name) == value
    for value in bad:
        with pytest.raises(ConfigError, match=name):
            settings.load(environ={f"LAMED_{name.upper()}": value})


def test_the_home_folder_is_not_a_folder_called_tilde(tmp_path: Path) -> None:
    toml = 'data_dir = "~/a"\ncheckpoint = "~/b"\nprotocols = "~/c"\nmanufacturer = "~/d"'
    config = load(toml, tmp_path)
    assert config.data_dir == Path.home() / "a"
    assert (config.checkpoint, config.protocols) == (f"{Path.home()}/b", f"{Path.home()}/c")
    assert config.manufacturer == "~/d"
    assert settings.load(environ={"LAMED_DATA_DIR": "~"}).data_dir == Path.home()


@pytest.mark.parametrize("place", ["", "node", "node/spool", "node/../node"])
def test_our_own_data_is_not_watched(place: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="watch_dir must be apart from data_dir"):
        Config(data_dir=tmp_path / "node", watch_dir=str(tmp_path / place))
    assert Config(data_dir=tmp_path / "node", watch_dir=str(tmp_path / "in"))


def test_no_data_folder_is_not_the_present_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="data_dir must be a folder"):
        load('data_dir = ""', tmp_path)
    with pytest.raises(ConfigError, match="data_dir must be a folder"):
        settings.load(environ={"LAMED_DATA_DIR": ""})


# --- the file -----------------------------------------------------------------------------------


def test_an_unknown_name_is_refused_and_the_near_one_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"node\.toml: no setting is called 'quite_s'.*quiet_s"):
        load("quite_s = 5", tmp_path)
    with pytest.raises(ConfigError, match="'colour'; see `lamed-node config`"):
        load('colour = "red"', tmp_path)
    with pytest.raises(ConfigError, match="'node'"):
        load("[node]\nquiet_s = 5", tmp_path)


@pytest.mark.parametrize("toml", ["quiet_s 5", "quiet_s = \n", "quiet_s = 5\nquiet_s = 6\n", "= 5"])
def test_what_is_not_toml_is_said_with_the_line(toml: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"node\.toml is not TOML: .*line \d"):
        load(toml, tmp_path)


def test_a_file_in_another_encoding_is_said(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_bytes('manufacturer = "Müller"'.encode("latin-1"))
    with pytest.raises(ConfigError, match="is not TOML"):
        settings.load(path, {})


def test_the_mark_that_editors_of_windows_write_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_bytes(b"\xef\xbb\xbfquiet_s = 5\r\n")
    assert settings.load(path, {}).quiet_s == 5


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.toml: No such file"):
        settings.load(tmp_path / "nowhere.toml", {})
    with pytest.raises(ConfigError, match=r"cannot read .*: Is a directory"):
        settings.load(tmp_path, {})


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

# --- the environment ----------------------------------------------------------------------------


def test_the_environment_wins_over_the_file_and_each_origin_is_told(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(f"quiet_s = 5\nlease_s = 7\n{TABLES}", encoding="utf-8")
    environ = {"LAMED_QUIET_S": "9", "LAMED_CALLING_AE_TITLES": "CT1, CT2", "PATH": "/bin"}
    config = settings.load(path, environ)
    assert (config.quiet_s, config.lease_s) == (9.0, 7.0)
    assert config.calling_ae_titles == ("CT1", "CT2")
    rows = {each.name: (each.value, each.origin) for each in settings.describe(path, environ)}
    assert rows["quiet_s"] == ("9.0", "LAMED_QUIET_S")
    assert rows["lease_s"] == ("7.0", str(path))
    assert rows["calling_ae_titles"] == ("CT1, CT2", "LAMED_CALLING_AE_TITLES")
    assert rows["destinations"] == ("PACS@10.0.0.5:104, VIEWER@localhost:4242", str(path))
    assert rows["http_port"] == ("8181", "default")


@pytest.mark.parametrize(
    "name", [each.name for each in fields(Config) if each.name not in TABLED[1:]]
)
def test_every_setting_can_come_from_the_environment(name: str) -> None:
    values: dict[str, tuple[str, Any]] = {
        "data_dir": ("/d", Path("/d")),
        "device": ("cpu", "cpu"),
        "validate": ("required", "required"),
        "run_record": ("True", True),
        "tls_profile": ("modified", "modified"),
        "tls_client_certificate": ("optional", "optional"),
        "tls_check_hostname": ("false", False),
        "retain_unproven": ("false", False),
        "audit_store": ("true", True),
        "dtype": ("float32", "float32"),
        "calling_ae_titles": ("A,B", ("A", "B")),
        "destinations": (str(PACS), (PACS,)),
    }
    text, value = values.get(name, ("17", 17 if name in NUMBERS else "17"))
    config = settings.load(environ={f"LAMED_{name.upper()}": text})
    assert config == replace(Config(), **{name: value})
    assert getattr(config, name) == value


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("LAMED_QUITE_S", "LAMED_QUIET_S"),
        ("LAMED_QUIET", "LAMED_QUIET_S"),
        ("LAMED_quiet_s", "LAMED_QUIET_S"),
        ("LAMED_DESTINATION", "LAMED_DESTINATIONS"),
        ("LAMED_AETITLE", "LAMED_AE_TITLE"),
        ("LAMED_CALLING_AES", "LAMED_CALLING_AE_TITLES"),
    ],
)
def test_a_mistyped_variable_is_refused_and_the_meant_one_told(typed: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"no setting is called {typed}, is {meant} meant"):
        settings.load(environ={typed: "5"})


def test_the_variables_of_others_are_left_alone_but_told(caplog: pytest.LogCaptureFixture) -> None:
    # As Kubernetes sets them in every container beside a service called "lamed".
    environ = {
        "LAMED_PORT": "tcp://10.0.0.1:11112",
        "LAMED_PORT_11112_TCP_ADDR": "10.0.0.1",
        "LAMED_SERVICE_HOST": "10.0.0.1",
        "LAMED_PARITY": "1",
        "MY_LAMED_QUIET_S": "5",
    }
    with caplog.at_level(logging.WARNING, "dicom_node.config"):
        assert settings.load(environ=environ) == Config()
    (told,) = caplog.records
    assert told.message == "config.unknown_variables"
    assert vars(told)["variables"] == (
        "LAMED_PARITY, LAMED_PORT, LAMED_PORT_11112_TCP_ADDR, LAMED_SERVICE_HOST"
    )


def test_the_process_s_own_environment_is_read(tmp_path: Path) -> None:
    program = "from dicom_node import config; print(config.load().quiet_s)"
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={"LAMED_QUIET_S": "3", "HOME": str(tmp_path)},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "3.0\n"


def test_what_is_neither_true_nor_false_is_refused(tmp_path: Path) -> None:
    assert load("run_record = true", tmp_path).run_record is True
    assert settings.load(environ={"LAMED_RUN_RECORD": "false"}).run_record is False
    for value in ("1", '"yes"'):
        with pytest.raises(ConfigError, match="run_record must be true or false, not"):
            load(f"run_record = {value}", tmp_path)
    with pytest.raises(ConfigError, match="validate must be auto, off or required, not 'on'"):
        load('validate = "on"', tmp_path)
