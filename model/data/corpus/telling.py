"""What is true of a case, in words: its report, questions with their answers, and what to outline.

Knows a `Case`. Every sentence is true of it: what is planted is said with its side and its place,
what is not is said too.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from .case import Case, Truth
from .findings import KINDS, Finding, Kind
from .organs import ABDOMEN, CHEST, HEAD, ORGANS
from .paint import PHASES, SEQUENCES

Random = np.random.Generator
BOX: Final = "{box}"  # where the box of the target stands in a question or an answer
SEG: Final = "[SEG]"
NONE: Final = "none of these"
ELSEWHERE: Final = "other region"
_ABSENT: Final = re.compile(r"This image does not show (?:the|a) (.*)\.")


@dataclass(frozen=True)
class Turn:
    """One question and its answer.

    ``target`` is what a mask or a box is of: the name of an organ, or a finding; None: words only.
    ``{box}`` stands for its box, which follows from the grid of the network.
    """

    task: str  # a value of `model.data.sample.Task`
    question: str
    answer: str
    kind: str = ""
    choices: tuple[str, ...] = ()
    letter: str = ""
    target: str | Finding | None = None
    absent: bool = False
    side: str = ""


@dataclass(frozen=True)
class Topic:
    """Something a report speaks of: the findings it is about, and how one asks for it."""

    region: str
    kinds: tuple[str, ...]
    none: str
    questions: tuple[str, ...]


TOPICS: Final = (
    Topic(CHEST, ("nodule", "mass"), "There is no nodule or mass in the lungs.", (
        "Is there a nodule or a mass in the lungs, and where is it?",
        "Do the lungs hold a nodule or a mass?",
    )),
    Topic(CHEST, ("consolidation",), "There is no consolidation in the lungs.", (
        "Is there consolidation or ground-glass opacity in the lungs, and in which lobe?",
        "Is a part of a lung consolidated, and which?",
    )),
    Topic(CHEST, ("effusion",), "There is no pleural effusion.", (
        "Is there fluid in the pleural space, and on which side?",
        "Is there a pleural effusion, and where?",
    )),
    Topic(CHEST, ("fracture",), "There is no fracture of the spine.", (
        "Is there a fracture or a destructive lesion of the ribs, the spine or the sternum?",
        "Is a vertebra broken?",
    )),
    Topic(ABDOMEN, ("lesion",), "There is no focal lesion in the liver.", (
        "Is there a focal lesion in the liver, and in which part of it?",
        "Does the liver hold a focal lesion?",
    )),
    Topic(ABDOMEN, ("stone", "cyst"), "There is no stone or cyst in the kidneys.", (
        "Is there a stone, a mass or a wide collecting system in a kidney, and on which side?",
        "Does a kidney hold a stone or a cyst, and which kidney?",
    )),
    Topic(ABDOMEN, ("gallstone",), "There is no stone in the gallbladder.", (
        "Are there gallstones, a thick gallbladder wall or wide bile ducts?",
        "Is there a stone in the gallbladder?",
    )),
    Topic(ABDOMEN, ("absence",), "No organ is missing.", (
        "Is an organ of the abdomen missing?",
        "Was an organ removed from the abdomen?",
    )),
    Topic(HEAD, ("haemorrhage",), "There is no haemorrhage in the brain.", (
        "Is there bleeding in the brain or around it?",
        "Is there a haemorrhage in the brain, and on which side?",
    )),
    Topic(HEAD, ("tumour",), "There is no mass in the brain.", (
        "Is there a mass in or beside the brain, and where is it?",
        "Is there an area of abnormal signal in the brain, and in which lobe?",
        "Does the brain hold a mass, and on which side?",
    )),
)  # fmt: skip
WORDS: Final = {"lesion": "focal lesion", "tumour": "mass", "effusion": "pleural effusion",
                "gallstone": "stone"}  # fmt: skip
CAPTIONS: Final = (
    "What are the relevant findings in this {what}, as a radiologist would report them?",
    "Describe the findings of this {what}.",
    "Write the report of this {what}.",
)
SEGMENT: Final = (
    "Please segment the {what} in this image.",
    "Outline the {what}.",
    "Can you mark the {what} in this scan?",
)
UNLEARNT: Final = "I have not learned to judge this."
BEYOND: Final = (
    "Are the trachea and the main bronchi open and of normal width?",
    "Are there signs of emphysema or fibrosis?",
    "Is there air in the pleural space, and on which side?",
    "Is the heart enlarged, and is there fluid in the pericardium?",
    "Is the thoracic aorta widened or dissected?",
    "Are there enlarged lymph nodes in the mediastinum or at the hila?",
    "Is anything abnormal in the part of the abdomen that is shown?",
    "Is there inflammation or a mass of the pancreas?",
    "Is the spleen enlarged or injured?",
    "Is there a mass in an adrenal gland, and on which side?",
    "Is the bowel obstructed, or is its wall thick?",
    "Is the appendix inflamed?",
    "Is there free air or free fluid in the abdomen?",
    "Is there an aneurysm or a dissection of the abdominal aorta?",
    "Are there enlarged lymph nodes in the abdomen?",
    "Is there a fracture or a destructive lesion of the spine or the pelvis?",
    "Is anything abnormal in the part of the chest that is shown?",
    "Are there signs of an infarct, and in which territory?",
    "Are there white matter lesions?",
    "Are the ventricles enlarged, and is the midline shifted?",
    "Is anything abnormal in the cerebellum or the brainstem?",
    "Is the pituitary gland enlarged?",
    "Is there a fluid collection between the brain and the skull?",
    "Is anything abnormal in the paranasal sinuses, the orbits or the skull?",
    "Is there a thrombus in the pulmonary arteries?",
    "Is the thyroid gland enlarged?",
    "Is there cirrhosis of the liver?",
    "Is there a hernia?",
    "Is the prostate enlarged?",
    "How old is the patient?",
    "Has the finding grown since the last scan?",
    "What should be done next?",
)  # fmt: skip
SURVEY: Final = "Go through the findings one by one."
ENHANCED: Final = "Was intravenous contrast material given for this scan?"
SHOWN: Final = {(CHEST, "CT"): "chest CT", (ABDOMEN, "CT"): "abdominal CT", (HEAD, "CT"): "head CT",
                (HEAD, "MR"): "brain MRI"}  # fmt: skip


def phrase(finding: Finding) -> str:
    """Name a finding with its side and its place, without an article."""
    word = named(finding.kind)
    if finding.kind == "effusion":
        return f"{finding.side} {word}"
    if finding.organ == "brain":
        return f"{word} in the {finding.zone} part of the {finding.side} side of the brain"
    if finding.kind == "fracture":
        return "fracture of the spine"
    organ = f"{finding.side} {finding.organ}".strip()
    zone = f"{finding.zone} part of the " if finding.zone else ""
    return f"{word} in the {zone}{organ}"


def sentence(finding: Finding) -> str:
    """State a finding."""
    if finding.kind == "absence":
        return f"The {f'{finding.side} {finding.organ}'.strip()} is absent."
    return f"There is a {phrase(finding)}."


def report(case: Case | Truth) -> str:
    """Say all that is true of a case, topic by topic, and sum it up."""
    said = [technique(case), *(_told(case, topic) for topic in _topics(case))]
    named = "; ".join(
        sentence(each).removesuffix(".") if each.kind == "absence" else phrase(each)
        for each in case.findings
    )
    return " ".join([*said, f"Impression: {named or 'no abnormality'}."])


def technique(case: Case | Truth) -> str:
    """Say how a case was scanned."""
    what = SHOWN[case.region, case.modality]
    what = what[0].upper() + what[1:]
    if case.modality == "MR":
        return f"{what}, {case.phase}-weighted."
    return f"{what} {case.phase}." if case.phase == PHASES[0] else f"{what}, {case.phase} phase."


def turns(case: Case | Truth, random: Random) -> Iterator[Turn]:
    """Give every kind of question about a case, in random words."""
    what = SHOWN[case.region, case.modality]
    yield Turn("caption", _any(random, CAPTIONS).format(what=what), report(case))
    for topic in _topics(case):
        found = _of(case, topic)
        asked = _any(random, topic.questions)
        sides = {each.side for each in found} - {""}
        side = sides.pop() if len(sides) == 1 else ""
        yield Turn("open_vqa", asked, _told(case, topic), "topic", absent=not found, side=side)
    yield from _plain(case, random)
    yield from _choices(case, random)
    yield from _outlines(case, random)
    yield from _boxes(case, random)


def survey(case: Case | Truth, random: Random) -> Turn:
    """Go through all kinds of findings in any order: each is named before it is judged.

    Only for training, and one of no published list. What follows a name depends on that name and
    the image alone.
    """
    told = []
    words = sorted({named(each.name) for each in _kinds(case)})
    for index in random.permutation(len(words)):
        word = words[int(index)]
        found = [each for each in case.findings if each.number and named(each.kind) == word]
        sides = sorted({each.side for each in found} - {""})
        where = f" on the {sides[0]} side" if sides else ""
        where = " on both sides" if len(sides) > 1 else where
        told.append(f"{word} is seen{where}." if found else f"{word} is absent.")
    answer = " ".join(each[0].upper() + each[1:] for each in told)
    return Turn("open_vqa", SURVEY, answer, "survey")


def possible(case: Case | Truth) -> dict[str, set[str]]:
    """Give the words for what a scan like this can hold, each with the sides it can be on."""
    found: dict[str, set[str]] = {}
    for kind in _kinds(case):
        sides = {ORGANS[each].side for each in kind.organs}
        sides = {"left", "right"} if kind.organs == ("brain",) else sides - {""}
        found.setdefault(named(kind.name), set()).update(sides)
    return found


def sides_of(case: Case | Truth, word: str) -> set[str]:
    """Tell on which sides a case has what a word names; "" is in the middle, nothing is nowhere."""
    return {each.side for each in case.findings if named(each.kind) == word and each.number}


def gone(turn: Turn) -> str:
    """Name what is to be outlined or boxed and is not there; nothing if it is."""
    match = _ABSENT.fullmatch(turn.answer)
    return match[1] if match else ""


def absence(turn: Turn, region: str) -> str:
    """Tell how hard it is to decline: what is absent belongs here, or is of another region."""
    name = gone(turn)
    if not name:
        return ""
    if name not in ORGANS:
        return "finding"
    return "same region" if region in ORGANS[name].region else ELSEWHERE


def _topics(case: Case | Truth) -> list[Topic]:
    return [
        each
        for each in TOPICS
        if each.region == case.region
        and all(kind not in KINDS or case.modality in KINDS[kind].values for kind in each.kinds)
    ]


def _of(case: Case | Truth, topic: Topic) -> list[Finding]:
    return [each for each in case.findings if each.kind in topic.kinds]


def _told(case: Case | Truth, topic: Topic) -> str:
    return " ".join(map(sentence, _of(case, topic))) or topic.none


def _plain(case: Case | Truth, random: Random) -> Iterator[Turn]:
    """Ask for the technique, for yes or no, and for what nobody taught."""
    if case.modality == "CT":
        given = "No" if case.phase == PHASES[0] else "Yes"
        yield Turn("open_vqa", ENHANCED, f"{given}. {technique(case)}", "technique")
        asked = "In which contrast phase was this scan made?"
    else:
        asked = "Which MRI sequence is this, and was contrast material given?"
    yield Turn("open_vqa", asked, technique(case), "technique")
    for claim, side, truly in _claims(case, random):
        answer = "Yes." if truly else "No."
        yield Turn(
            "open_vqa", f"Is there a {claim}?", answer, "yes_no", absent=not truly, side=side
        )
    known = {each for topic in _topics(case) for each in topic.questions}
    for index in random.permutation(len(BEYOND))[:2]:
        if BEYOND[int(index)] not in known:
            yield Turn("open_vqa", BEYOND[int(index)], UNLEARNT, "beyond")


def _claims(case: Case | Truth, random: Random) -> Iterator[tuple[str, str, bool]]:
    """Say of each kind of finding that it is there, and on a side; tell the side and the truth.

    Every kind is asked for, there or not: what is asked gives nothing away, and yes and no are
    about as frequent.
    """
    for word, sides in possible(case).items():
        there = sides_of(case, word)
        yield word, "", bool(there)
        if sides and (there or random.random() < 0.5):  # noqa: PLR2004 - a coin
            side = _any(random, sorted(sides))
            yield f"{word} on the {side} side", side, side in there


def _kinds(case: Case | Truth) -> list[Kind]:
    """Give the kinds of findings that a scan like this can hold."""
    return [
        each
        for each in KINDS.values()
        if each.region == case.region and case.modality in each.values
    ]


def _unseen(case: Case | Truth, random: Random) -> Finding | None:
    """Make up a finding of a kind that the case has not."""
    seen = {each.kind for each in case.findings}
    kinds = [each for each in _kinds(case) if each.name not in seen]
    if not kinds:
        return None
    kind = kinds[int(random.integers(len(kinds)))]
    organ = ORGANS[_any(random, kind.organs)]
    side = organ.side or (_any(random, ("left", "right")) if organ.name == "brain" else "")
    zones = {CHEST: ("upper", "lower"), HEAD: ("anterior", "posterior")}.get(case.region, ("",))
    zoned = kind.name in {"nodule", "mass", "consolidation"} or case.region == HEAD
    return Finding(kind.name, organ.plain, side, _any(random, zones) if zoned else "", 0)


def _choices(case: Case | Truth, random: Random) -> Iterator[Turn]:
    """Four-choice questions: region, phase, organ, abnormality, side."""
    yield _choice(random, "region", "Which part of the body is shown?", case.region,
                  [CHEST, ABDOMEN, HEAD, "knee"])  # fmt: skip
    if case.modality == "CT":
        asked, known = "In which contrast phase was this scan made?", [*PHASES, "delayed"]
    else:
        asked, known = "Which MRI sequence is this?", [*SEQUENCES, "FLAIR", "diffusion"]
    yield _choice(random, "phase", asked, case.phase, known)
    if case.present and len(case.missing) >= 3:  # noqa: PLR2004 - the other choices
        shown, gone = _any(random, case.present), list(random.permutation(case.missing)[:3])
        yield _choice(random, "organ", "Which of these structures is shown?", shown, [shown, *gone])
    seen = [each.kind for each in case.findings if each.number]
    unseen = [each for each in KINDS.values() if each.name not in seen]
    # Those of the same region first: a word of another one would give itself away.
    unseen.sort(key=lambda each: (each.region != case.region, random.random()))
    right = _any(random, seen) if seen else NONE
    words = dict.fromkeys(named(each.name) for each in unseen)
    wrong = [each for each in words if each not in map(named, seen)]
    listed = [right, *wrong[:2], NONE] if seen else [*wrong[:3], NONE]
    asked = "Which of these is seen in the scan?"
    yield _choice(random, "abnormality", asked, right, listed)
    for each in case.findings:
        others = {other.side for other in case.findings if other.kind == each.kind}
        if each.side and each.number:
            right = each.side if len(others) == 1 else "both sides"
            asked = f"On which side is the {named(each.kind)}?"
            known = ["left", "right", "both sides", "there is none"]
            yield _choice(random, "side", asked, right, known)


def _choice(random: Random, kind: str, asked: str, right: str, choices: Sequence[str]) -> Turn:
    shuffled = tuple(named(str(each)) for each in random.permutation(choices))
    letter = "ABCD"[shuffled.index(named(right))]
    listed = " ".join(f"{name}. {each}" for name, each in zip("ABCD", shuffled, strict=True))
    answer = f"{letter}. {named(right)}"
    return Turn("closed_vqa", f"{asked} Choices: {listed}", answer, kind, shuffled, letter)


def _outlines(case: Case | Truth, random: Random) -> Iterator[Turn]:
    """Ask for the outline of what is there, and of what is not."""
    for name in case.present:
        asked, side = _any(random, SEGMENT).format(what=name), ORGANS[name].side
        answer = f"This is the {name}: {SEG}."
        yield Turn("semantic_segmentation", asked, answer, "organ", target=name, side=side)
    for name in case.missing:
        asked = _any(random, SEGMENT).format(what=name)
        answer = f"This image does not show the {name}."
        yield Turn("semantic_segmentation", asked, answer, "organ", absent=True)
    for each in case.findings:
        if each.number:
            asked = _any(random, SEGMENT).format(what=phrase(each))
            answer = f"This is the {phrase(each)}: {SEG}."
            yield Turn(
                "referring_segmentation", asked, answer, each.kind, target=each, side=each.side
            )
    unseen = _unseen(case, random)
    if unseen:
        asked = _any(random, SEGMENT).format(what=phrase(unseen))
        answer = f"This image does not show a {phrase(unseen)}."
        yield Turn(
            "referring_segmentation", asked, answer, unseen.kind, absent=True, side=unseen.side
        )


def _boxes(case: Case | Truth, random: Random) -> Iterator[Turn]:
    """Ask where something is, and what is in a box."""
    targets: list[tuple[str, str | Finding, str]] = [
        (name, name, ORGANS[name].side) for name in random.permutation(case.present)[:4]
    ]
    targets += [(phrase(each), each, each.side) for each in case.findings if each.number]
    for name, target, side in targets:
        where = f"Where is the {name}? Answer with a box."
        yield Turn("rec", where, f"It is at {BOX}.", "", target=target, side=side)
        yield Turn(
            "reg", f"What is in the box {BOX}?", f"The {name}.", "", target=target, side=side
        )
    gone = [*random.permutation(case.missing)[:1]]
    unseen = _unseen(case, random)
    for name in [*map(str, gone), *([phrase(unseen)] if unseen else [])]:
        where, article = f"Where is the {name}? Answer with a box.", "the" if name in gone else "a"
        yield Turn("rec", where, f"This image does not show {article} {name}.", "", absent=True)


def named(kind: str) -> str:
    """Name a kind of finding as the sentences do."""
    return WORDS.get(kind, kind)


def _any(random: Random, choices: Sequence[str]) -> str:
    return str(choices[int(random.integers(len(choices)))])
