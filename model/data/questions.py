"""Four-choice questions about one report: asked for, judged, asked for again.

Knows what M3D (arXiv 2404.00578) asks for: nine questions in five categories. Knows neither how a
language model is reached nor whether an answer is true: that is for `checking`.
"""

import hashlib
import re
import tomllib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache
from importlib import resources
from pathlib import PurePosixPath
from string import Template
from typing import Any, Generic, Protocol, TypeVar

from . import faults
from .completions import Prompt
from .faults import Fault, Faulty
from .replies import Object, objects, strings

LETTERS = "ABCD"
ROUNDS = 3
WRITE_TOKENS = 3000
WRITE_TEMPERATURE = 0.7  # checks are made at 0
SHOWN = 300  # characters of a refused question that are told

Ask = Callable[[Prompt], Awaitable[str]]


class Kind(StrEnum):
    """The categories of M3D-VQA, in the order of its numbers."""

    PLANE = "plane"
    PHASE = "phase"
    ORGAN = "organ"
    ABNORMALITY = "abnormality"
    LOCATION = "location"

    @property
    def number(self) -> int:
        """The "Question Type" of the published tables, from 1."""
        return list(Kind).index(self) + 1


Plan = Mapping[Kind, int]
PLAN: Plan = {
    Kind.PLANE: 1,
    Kind.PHASE: 1,
    Kind.ORGAN: 1,
    Kind.ABNORMALITY: 3,
    Kind.LOCATION: 3,
}


@dataclass(frozen=True)
class Report:
    """What was reported of one image; the name of the image's file tells plane and phase."""

    image: str
    text: str

    @property
    def series(self) -> str:
        """The name of the file as words."""
        words = re.findall(r"\w+", PurePosixPath(self.image).stem.replace("_", " "))
        says_something = any(re.search(r"[^\W\d]{3}", each) for each in words)
        return " ".join(words) if says_something else "not named"


@dataclass(frozen=True)
class Question:
    """One question, its choices (four, or Yes and No) and the right one among them."""

    kind: Kind
    text: str
    choices: tuple[str, ...]
    answer: str

    @property
    def letter(self) -> str:
        """Where the answer stands."""
        return LETTERS[self.choices.index(self.answer)]


class Item(Protocol):
    """What is asked for by kind: a question, or a pair of them."""

    @property
    def kind(self) -> Kind:
        """The category."""

    @property
    def text(self) -> str:
        """The words that no other one may have."""


T = TypeVar("T", bound=Item)


@dataclass
class Written(Generic[T]):
    """What came of asking: what is kept, what was refused and why, what cannot be asked."""

    kept: list[T] = field(default_factory=list)
    refused: list[tuple[Fault, str]] = field(default_factory=list)
    not_stated: set[Kind] = field(default_factory=set)
    surplus: int = 0

    def missing(self, plan: Plan) -> dict[Kind, int]:
        """How many of each kind are still to be asked for."""
        have = Counter(each.kind for each in self.kept)
        wanted = {kind: number - have[kind] for kind, number in plan.items()}
        return {kind: n for kind, n in wanted.items() if n > 0 and kind not in self.not_stated}


@dataclass(frozen=True)
class Sort(Generic[T]):
    """A sort of item: its instruction, the key it is known by in a reply, how it is read."""

    name: str
    key: str
    schema: Mapping[str, object]
    read: Callable[[Object, Report], T]


async def write(report: Report, ask: Ask) -> Written[Question]:
    """Have the nine questions written; what is missing or faulty is asked for again."""
    return await gather(report, ask, FOUR_CHOICES, PLAN)


async def gather(report: Report, ask: Ask, sort: Sort[T], plan: Plan) -> Written[T]:
    """Ask in rounds until the plan is fulfilled, or nothing more can be hoped for."""
    written: Written[T] = Written()
    for _ in range(ROUNDS):
        missing = written.missing(plan)
        if not missing:
            break
        reply = await ask(_prompt(report, sort, missing, written))
        for told in objects(reply, sort.key):
            _take(told, report, sort, written, plan)
        named = {each.casefold().strip() for each in strings(reply, "not_stated")}
        written.not_stated |= {kind for kind in missing if kind in named}
    return written


def _take(told: Object, report: Report, sort: Sort[T], written: Written[T], plan: Plan) -> None:
    try:
        item = sort.read(told, report)
        _check_new(item, written.kept)
    except Faulty as fault:
        said = str(told.get(sort.key)).encode(errors="replace").decode()
        written.refused.append((fault.fault, said[:SHOWN]))
        return
    if sum(each.kind == item.kind for each in written.kept) < plan.get(item.kind, 0):
        written.kept.append(item)
    else:
        written.surplus += 1


def _check_new(item: Item, kept: Iterable[Item]) -> None:
    if faults.normal(item.text) in {faults.normal(each.text) for each in kept}:
        raise Faulty(Fault.REPEATED)


def read(told: Object, report: Report) -> Question:
    """Make a question of what a model wrote.

    Raises
    ------
    Faulty
        It cannot be used.
    """
    kind, text = kind_of(told), text_of(told, "question")
    choices = faults.unlabelled(_choices(told.get("choices")))
    faults.check_wording(text)
    faults.check_choices(choices)
    answer = faults.find_answer(text_of(told, "answer"), choices)
    faults.check_answer(text, choices, answer)
    if kind is Kind.PLANE:
        faults.check_plane(answer, report.series)
    return Question(kind, text, tuple(choices), answer)


def kind_of(told: Object) -> Kind:
    """Read the category."""
    try:
        return Kind(str(told.get("kind")).casefold().strip())
    except ValueError as error:
        raise Faulty(Fault.KIND) from error


def text_of(told: Object, key: str) -> str:
    """Read words, without line breaks and blanks that mean nothing."""
    text = told.get(key)
    if not isinstance(text, str) or not text.strip():
        raise Faulty(Fault.SHAPE)
    return _plain(text)


def _choices(told: object) -> list[str]:
    if isinstance(told, dict):
        told = [told[each] for each in sorted(told)]
    if not isinstance(told, list) or any(isinstance(each, (dict, list)) for each in told):
        raise Faulty(Fault.SHAPE)
    return [_plain(str(each)) for each in told]


def _plain(text: str) -> str:
    """Refuse what nobody can see, such as half a surrogate, which no request could hold."""
    plain = " ".join(text.split())
    if not plain.isprintable():
        raise Faulty(Fault.SHAPE)
    return plain


def lettered(rows: Iterable[tuple[str, Question]], seed: int) -> list[tuple[str, Question]]:
    """Shuffle the choices so that the answers stand at A to D equally often, in each kind.

    The same images, questions and seed give the same letters.
    """
    seen: Counter[Kind] = Counter()
    done = []
    for image, each in rows:
        block, place = divmod(seen[each.kind], len(LETTERS))
        seen[each.kind] += 1
        letter = shuffled(LETTERS, seed, each.kind, str(block))[place]
        choices = shuffled(each.choices, seed, image, each.text)
        choices.remove(each.answer)
        choices.insert(LETTERS.index(letter), each.answer)
        done.append((image, replace(each, choices=tuple(choices))))
    return done


def shuffled(items: Iterable[str], seed: int, *salt: str) -> list[str]:
    """Order by hash: the same on every machine, and not moved by what else is shuffled."""
    begin = "\x1f".join((str(seed), *salt))
    return sorted(items, key=lambda item: hashlib.sha256(f"{begin}\x1f{item}".encode()).digest())


@cache
def instruction(name: str) -> dict[str, Any]:
    """Read `instructions/NAME.toml`."""
    file = resources.files(__package__).joinpath("instructions", f"{name}.toml")
    return tomllib.loads(file.read_text(encoding="utf-8"))


def instructions_sha256() -> str:
    """Tell one wording of the instructions from another."""
    folder = resources.files(__package__).joinpath("instructions")
    files = sorted(
        (each.name, each.read_bytes()) for each in folder.iterdir() if each.name.endswith(".toml")
    )
    return hashlib.sha256(repr(files).encode()).hexdigest()


def material(report: Report) -> str:
    """Say what a request about a report begins with. The report cannot close its own marks."""
    text = re.sub(r"</?(report|series)\b", "<", report.text, flags=re.IGNORECASE)
    template = Template(instruction("report")["material"])
    return template.substitute(series=report.series, report=text).strip() + "\n"


def fill(name: str, **fields: str) -> str:
    """Fill in the task of an instruction."""
    return Template(instruction(name)["task"]).substitute(fields).strip() + "\n"


def _prompt(
    report: Report, sort: Sort[T], missing: Mapping[Kind, int], written: Written[T]
) -> Prompt:
    wording = instruction("questions")
    explained = instruction("report")["faults"]
    kept = [f'- "{each.text}"' for each in written.kept]
    refused = [f'- "{text}" {explained[fault]}' for fault, text in written.refused]
    wanted = [
        f'- {n} of the kind "{kind}": {wording["kinds"][kind]}' for kind, n in missing.items()
    ]
    user = fill(
        sort.name,
        material=material(report),
        wanted="\n".join(wanted),
        kept=_listed(wording["kept"], kept),
        refused=_listed(wording["refused"], refused),
        question_length=str(faults.QUESTION_LENGTH[1]),
        choice_length=str(faults.CHOICE_LENGTH),
    )
    return Prompt(
        step=sort.name,
        subject=report.image,
        system=instruction("report")["system"].strip(),
        user=user,
        schema=listing(sort.name, sort.schema),
        keys=(sort.key, "not_stated"),
        max_tokens=WRITE_TOKENS,
        temperature=WRITE_TEMPERATURE,
    )


def _listed(heading: str, lines: Sequence[str]) -> str:
    return "\n".join((heading.rstrip(), *lines)) + "\n" if lines else ""


def shape(**properties: object) -> dict[str, object]:
    """Describe an object that has exactly these properties, as strict JSON schema wants it."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def listing(name: str, item: Mapping[str, object]) -> dict[str, object]:
    """Describe a list of items, and of the kinds that cannot be asked."""
    kinds = {"type": "array", "items": KIND}
    return shape(**{name: {"type": "array", "items": item}, "not_stated": kinds})


KIND: Mapping[str, object] = {"type": "string", "enum": [each.value for each in Kind]}
WORDS: Mapping[str, object] = {"type": "string"}
FOUR_CHOICES: Sort[Question] = Sort(
    name="questions",
    key="question",
    schema=shape(
        kind=KIND, question=WORDS, choices={"type": "array", "items": WORDS}, answer=WORDS
    ),
    read=read,
)
