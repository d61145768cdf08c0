"""The plugin's README and example are true: settings, states, and an Orthanc that starts."""

import ast
import json
import re
import shutil
from pathlib import Path
from typing import Any

import drafts
import pytest
from node import TOKEN, Answering
from orthanc_server import OUR_PLUGIN, Orthanc, eventually

from dicom_node.demo import sample
from dicom_node.ledger.transaction import TRANSITIONS

FOLDER = OUR_PLUGIN.parent
README = (FOLDER / "README.md").read_text(encoding="utf-8")
EXAMPLE = json.loads((FOLDER / "orthanc.json").read_text(encoding="utf-8"))
OF_THE_PLUGIN = {"", "waiting", "sending", "sent"}


def table(heading: str) -> list[list[str]]:
    """Give the rows of a table of the README, without the backticks."""
    rows = README.split(f"\n| {heading} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip().strip("`") for cell in row.split("|")[1:-1]] for row in rows]


def defaults() -> dict[str, Any]:
    """Read the settings from the plugin's source: only Orthanc can import it."""
    tree = ast.parse(OUR_PLUGIN.read_text(encoding="utf-8"))
    (settings,) = (
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Settings"
    )
    found = {
        ast.unparse(each.target): ast.literal_eval(each.value)
        for each in settings.body
        if isinstance(each, ast.AnnAssign) and each.value is not None
    }
    return {name: list(each) if isinstance(each, tuple) else each for name, each in found.items()}


def test_every_setting_stands_in_the_readme_with_its_default() -> None:
    told = {name: json.loads(default) for name, default, _ in table("Setting")}
    assert told == defaults()
    assert len(told) > 1


def test_every_state_has_a_meaning_in_the_readme_and_on_the_page() -> None:
    known = OF_THE_PLUGIN | set(TRANSITIONS)
    assert [state for state, _ in table("State")] == [*sorted(known, key=order)]
    script = (FOLDER / "lamed_explorer.js").read_text(encoding="utf-8")
    meanings = script.split("var MEANING = {", 1)[1].split("};", 1)[0]
    assert set(re.findall(r"^ *'(\w*)':", meanings, re.MULTILINE)) == known


def order(state: str) -> int:
    """Sort states as a study comes through them."""
    way = ["", "waiting", "sending", "sent", *TRANSITIONS]
    return way.index(state)


def test_the_configuration_of_the_readme_is_that_of_the_example() -> None:
    for name in ("DicomModalities", "UserMetadata"):
        (line,) = re.findall(rf'^    "{name}": (.*)$', README, re.MULTILINE)
        assert json.loads(line) == EXAMPLE[name]
    assert EXAMPLE["PythonScript"] == OUR_PLUGIN.name
    assert f"/{OUR_PLUGIN.name}" in README
    assert set(EXAMPLE["LaMed"]) <= set(defaults())
    assert EXAMPLE["LaMed"]["Node"] in EXAMPLE["DicomModalities"]
    assert EXAMPLE["LaMed"]["Url"] == defaults()["Url"]


@pytest.mark.orthanc
def test_orthanc_starts_with_the_example_and_forwards_a_study(tmp_path: Path) -> None:
    folder = tmp_path / "orthanc"
    folder.mkdir()
    for name in ("lamed_orthanc.py", "lamed_explorer.js", "orthanc.json"):
        shutil.copy(FOLDER / name, folder)
    with Answering(tmp_path / "node") as node:
        settings = json.loads((folder / "orthanc.json").read_text())
        token = folder / settings["LaMed"]["TokenFile"]
        token.parent.mkdir()
        token.write_text(TOKEN)
        # Other ports, and no minute of waiting; the rest is as it stands there.
        settings["DicomModalities"]["lamed"][2] = node.config.dicom_port
        settings["LaMed"]["Url"] = node.url
        settings["StableAge"] = 1
        plugins = [Path(each) for each in settings["Plugins"]]
        with Orthanc(folder, plugins=plugins, settings=settings) as orthanc:
            assert orthanc.get("/lamed/status")["reachable"]
            instances = drafts.series()
            study_id = orthanc.upload(sample.write(instances, tmp_path / "ct"))
            metadata = f"/studies/{study_id}/metadata/LamedState"
            eventually(lambda: orthanc.http.get(metadata).text == "receiving")
            made = node.answer(instances, orthanc.address)
            eventually(lambda: orthanc.http.get(metadata).text == "done")
            assert orthanc.get(f"/lamed/studies/{study_id}")["drafts"] == len(made)
