"""What the documents say is what the code does: tables, trees, links, versions.

The generated parts of README.md and CONTRIBUTING.md are printed by their tests when they are out of
date.
"""

import argparse
import ast
import configparser
import importlib.metadata
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from conftest import missing

from dicom_node import config
from dicom_node.__main__ import _parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
CODE = ("dicom_node", "model", "sr_templates", "plugin")
# What a folder without a docstring of its own holds.
FOLDERS = {
    "dicom_node/qa/pages": "the templates of the pages",
    "dicom_node/qa/static": "their style",
    "plugin": "runs inside Orthanc, under a licence of its own",
    "sr_templates/protocols": "what is asked of which exam: files that a radiologist can review",
    "tests": "one file for each module, same name; sentences as test names",
    "tests/breaking": "the node is broken on purpose: fuzzing, crashes, a soak",
    "tests/bench": "how fast, how large, beside what others do",
    "tests/validation": "every object before the validators and readers of others",
    "tests/data": "small reference values, each folder with its provenance",
}


def tracked() -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        missing("git, or the repository")
    return [path for name in done.stdout.splitlines() if (path := ROOT / name).is_file()]


def between(text: str, marker: str) -> str:
    return text.split(f"<!-- {marker} -->\n")[1].split(f"<!-- /{marker} -->", maxsplit=1)[0]


# --- README.md ------------------------------------------------------------------------------------


def settings_table() -> str:
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for each in config.describe(None, {}):
        default = f"`{each.default}`" if each.default else ""
        meaning = each.help.replace("|", "\\|")
        lines.append(f"| `{each.name}` | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def house() -> str:
    """Write the tree: folders and modules, each with the first sentence of its docstring."""
    files = tracked()
    lines = [line for name in CODE for line in _folder(ROOT / name, files, 0)]
    lines += [
        _line(f"{Path(name).name}/", name.count("/"), FOLDERS[name])
        for name in ("tests", "tests/bench", "tests/breaking", "tests/validation", "tests/data")
    ]
    return "\n".join(["```", *lines, "```"]) + "\n"


def _folder(folder: Path, files: list[Path], depth: int) -> Iterator[str]:
    init = folder / "__init__.py"
    told = _first(init) if init in files else FOLDERS.get(str(folder.relative_to(ROOT)), "")
    yield _line(f"{folder.name}/", depth, told)
    for path in sorted(each for each in files if each.parent == folder and each != init):
        if path.suffix in {".py", ".js"}:
            yield _line(path.name, depth + 1, _first(path))
    inside = {each for path in files for each in path.parents if each.parent == folder}
    for each in sorted(inside):
        yield from _folder(each, files, depth + 1)


def _line(name: str, depth: int, told: str) -> str:
    return f"{'  ' * depth + name:<24}{told}".rstrip()


def _first(path: Path) -> str:
    """Give the first sentence of a docstring, or of the comment a file begins with."""
    source = path.read_text()
    if path.suffix == ".py":
        told = (ast.get_docstring(ast.parse(source)) or "?").splitlines()[0]
    else:
        told = source.splitlines()[0].removeprefix("// ")
    return re.split(r"(?<=[a-z\])`])\. ", told)[0].rstrip(".")


def test_the_readme_shows_every_setting() -> None:
    assert between(README, "settings") == settings_table(), f"expected\n\n{settings_table()}"


def test_contributors_are_shown_the_house_as_it_stands() -> None:
    assert between(CONTRIBUTING, "tree") == house(), f"expected\n\n{house()}"


def test_every_module_says_what_it_is() -> None:
    for path in tracked():
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in CODE:
            told = ast.get_docstring(ast.parse(path.read_text())) or ""
            assert told.splitlines()[0].endswith((".", ":")), path


def commands(parser: argparse.ArgumentParser, before: str = "") -> Iterator[tuple[str, set[str]]]:
    """Give every command of a parser with its options."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, verb in action.choices.items():
                yield from commands(verb, f"{before}{name} ")
            return
    yield before.strip(), {each for action in parser._actions for each in action.option_strings}


def test_the_commands_of_the_readme_exist_with_their_options() -> None:
    known = dict(commands(_parser()))
    spoken = re.findall(r"lamed-node ([^\n`#>]+)", README)
    assert len(spoken) > 8
    for words in spoken:
        found = [each for each in known if f"{words} ".startswith(f"{each} ")]
        assert found, f"lamed-node {words}"
        for option in re.findall(r"--[a-z-]+", words):
            assert option in known[max(found, key=len)], f"lamed-node {words}"


def test_every_command_is_shown_to_somebody() -> None:
    shown = README + (ROOT / "Makefile").read_text()
    for name, _ in commands(_parser()):
        assert re.search(rf"lamed-node {name}\b", shown), f"lamed-node {name} stands nowhere"


# --- all documents --------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """Give the anchors that GitHub makes of headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def test_links_lead_somewhere() -> None:
    for path in tracked():
        if path.suffix != ".md":
            continue
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
            if re.match(r"[a-z]+:", target):
                continue
            file, _, anchor = target.partition("#")
            found = (path.parent / file).resolve() if file else path
            assert found.exists(), f"{path.name}: {target}"
            assert not anchor or anchor in anchors(found.read_text()), f"{path.name}: {target}"


def test_the_version_lives_in_the_changelog() -> None:
    top = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert top is not None
    assert top[1] == setup["metadata"]["version"] == importlib.metadata.version("lamed-node")


def test_no_text_tells_where_it_was_written() -> None:
    """Paths of one machine and hosts of one company's network have no place in a repository."""
    told = re.compile(
        "|".join(
            [
                r"(?<![\w.])/(?:work|root|tmp|Users)/",
                r"/home/\w",
                r"arti" + "factory",
                r"--(?:extra-)?index" + "-url",
                r"\b(?:localhost|127\.0\.0\.1):\d+/simple",
                r"\b10\.\d+\.\d+\.\d+(?::\d+)?/",
            ]
        )
    )
    for path in tracked():
        # What others published is quoted as it is.
        if path == Path(__file__) or path.is_relative_to(ROOT / "tests" / "data"):
            continue
        found = told.search(path.read_text(errors="replace"))
        assert found is None, f"{path.relative_to(ROOT)}: {found}"
