import ast
import configparser
import importlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest
from conftest import missing

ROOT = Path(__file__).parent.parent
PACKAGES = ("dicom_node", "model", "sr_templates")
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
# What a package needs and gets through another one that it names.
BROUGHT = {"huggingface_hub": "transformers"}


def sources(package: str) -> list[Path]:
    return [
        path
        for path in sorted((ROOT / package).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ]


def modules() -> list[Path]:
    return [path for each in PACKAGES for path in sources(each) if path.suffix == ".py"]


def packages() -> list[str]:
    inits = [path.parent for path in modules() if path.name == "__init__.py"]
    return [".".join(each.relative_to(ROOT).parts) for each in inits]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of a copy, so that nothing is left behind in the repository."""
    if importlib.util.find_spec("setuptools") is None:
        missing("setuptools")
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    for name in tracked:
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    build = ["pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", *build, str(copy)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the wheel, which is all that installing a pure one does besides its programs."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(code: str, *arguments: str, path: Path = ROOT) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": str(path)},
        cwd=path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_our_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == {str(path.relative_to(ROOT)) for each in PACKAGES for path in sources(each)}
    assert {Path(name).parts[0] for name in held} == set(PACKAGES)
    assert {f"sr_templates/protocols/{each}.toml" for each in ("ct_chest", "mr_brain")} <= held
    assert {"dicom_node/qa/pages/base.html", "dicom_node/qa/static/qa.css"} <= held


def test_the_wheel_carries_our_licence_and_not_the_plugin_with_another(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (licence,) = [each for each in names if each.endswith("licenses/LICENSE")]
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
        (about,) = [each for each in names if each.endswith(".dist-info/METADATA")]
        metadata = archive.read(about).decode()
    assert re.search("^License(-Expression)?: Apache-2.0$", metadata, re.MULTILINE)
    assert not [name for name in names if "plugin" in name or "orthanc" in name.lower()]
    assert "AFFERO" in (ROOT / "plugin" / "LICENSE").read_text().upper()
    assert (
        "SPDX-License-Identifier: AGPL-3.0-or-later"
        in (ROOT / "plugin" / "lamed_orthanc.py").read_text()
    ), "the plugin runs inside Orthanc and has Orthanc's licence"


def test_the_programs_of_the_wheel_run(installed: Path) -> None:
    code = """
import sys
from importlib.metadata import entry_points
(entry,) = entry_points(group="console_scripts", name=sys.argv[1])
program = entry.load()
print(sys.modules[entry.module].__file__)
sys.exit(program([sys.argv[2]]))
"""
    for program, option in (("lamed-node", "--version"), ("lamed-model", "--help")):
        where, told = run(code, program, option, path=installed).split("\n", 1)
        assert Path(where).is_relative_to(installed)
        assert told.startswith((SETUP["metadata"]["version"], f"usage: {program}"))


def test_protocols_and_pages_are_found_where_the_wheel_puts_them(installed: Path) -> None:
    code = """
import json, pathlib, sr_templates, dicom_node.qa
pages = pathlib.Path(dicom_node.qa.__file__).parent / "pages"
print(json.dumps([sorted(sr_templates.load_protocols()), sorted(p.name for p in pages.iterdir())]))
"""
    protocols, pages = json.loads(run(code, path=installed))
    assert protocols == sorted(
        each.stem for each in (ROOT / "sr_templates" / "protocols").glob("*.toml")
    )
    assert "study.html" in pages


@pytest.mark.parametrize("name", packages())
def test_what_a_package_shows_is_what_it_says_it_shows(name: str) -> None:
    package = importlib.import_module(name)
    bound = {
        each
        for each, value in vars(package).items()
        if not each.startswith("_") and not isinstance(value, types.ModuleType)
    }
    shown = set(getattr(package, "__all__", ()))  # a package without it shows its modules only
    tree = ast.parse(Path(str(package.__file__)).read_text())
    used = {each.id for each in ast.walk(tree) if isinstance(each, ast.Name)}
    assert shown <= bound
    assert bound - used - shown == set(), "imported, and neither used nor shown"
    assert shown or not bound


@pytest.mark.parametrize("module", ["config", "ledger", "qa", "scp", "intake", "__main__"])
def test_what_serves_without_the_model_starts_without_torch(module: str) -> None:
    heavy = ["torch", "transformers", "monai", "model"]
    code = f"""
import sys, dicom_node.{module}
print([name for name in {heavy} if name in sys.modules])
"""
    assert run(code).strip() == "[]"


def test_whatever_is_imported_is_a_requirement() -> None:
    extras = [text for name, text in SETUP["options.extras_require"].items() if name != "dev"]
    required = {
        re.split(r"[ <>=]", line)[0].lower()
        for text in (SETUP["options"]["install_requires"], *extras)
        for line in text.split("\n")
        if line
    }
    owners = importlib.metadata.packages_distributions()
    for path in modules():
        for name in imported(path) - set(sys.stdlib_module_names) - set(PACKAGES):
            owner = BROUGHT.get(name, name)
            distributions = {each.lower() for each in owners.get(owner, ())}
            assert distributions & required, f"{path.name} imports {name}: not in setup.cfg"


def test_what_comes_with_another_requirement_does_come_with_it() -> None:
    for name, owner in BROUGHT.items():
        needed = importlib.metadata.requires(owner) or []
        assert any(re.match(name.replace("_", "[-_]"), each) for each in needed)


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for each in ast.walk(ast.parse(path.read_text())):
        if isinstance(each, ast.Import):
            found |= {alias.name.split(".")[0] for alias in each.names}
        elif isinstance(each, ast.ImportFrom) and each.level == 0:
            found.add(str(each.module).split(".")[0])
    return found


def test_the_installed_names_are_ours_alone() -> None:
    owners = importlib.metadata.packages_distributions()
    for name in PACKAGES:
        assert set(owners.get(name, ["lamed-node"])) == {"lamed-node"}
