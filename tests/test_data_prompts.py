"""Our own words: no sentence of the reference, no side that flips, nothing shown that is absent."""

import json
import re
import string
from collections.abc import Callable

import pytest
import reference

from model.data import prompts
from model.data.prompts import SLOTS, Turn, box_text, choice_text, pick, templates
from model.data.sample import Box
from model.data.terms import Term, corrected, term, terms
from model.errors import ModelError
from model.tokenizer import IMAGE, SEG

BOX: Box = (0.25, 0.25, 0.375, 0.5, 0.5, 0.75)
# What the 25 published sets call their classes (m3d.md 4); those of one set that only count
# tumours of one organ, or say nothing, are left out.
PUBLISHED = """
liver; carotid artery left; carotid artery right; arytenoid; bone mandible; brainstem; buccal mucosa
oral cavity; cochlea left; cricopharyngeal inlet; cervical esophagus; anterior eyeball left
posterior eyeball right; lacrimal gland left; submandibular gland right; thyroid; larynx glottis
larynx supraglottic; lips; optic chiasm; optic nerve left; parotid gland right; pituitary gland
spinal cord; spleen; right kidney; left kidney; gall bladder; esophagus; stomach; aorta; postcava
pancreas; right adrenal gland; duodenum; bladder; prostate or uterus; kidney; kidney tumor
kidney cyst; renal vein; renal artery; gallbladder; inferior vena cava; portal vein and splenic vein
stones; artery; biliary system; bone; colon; heart; kidneys; left lung; left suprarenal gland
left suprarenal tumor; liver cyst; liver kyst; liver kyste; liver tumor; liver tumors; lungs; metal
metastasectomie; portal vein; skin; small intestin; suprarenal gland; tumor; uterus; vena cava
venous system; adrenal gland left; autochthon right; brain; clavicula left; face; femur right
gluteus maximus left; gluteus medius right; gluteus minimus left; heart atrium left
heart atrium right; heart myocardium; heart ventricle left; heart ventricle right; hip left
humerus right; iliac artery left; iliac vena right; iliopsoas left; kidney left
lung lower lobe left; lung middle lobe right; lung upper lobe right; pulmonary artery; rib left 1
rib right 12; sacrum; scapula left; small bowel; trachea; urinary bladder; vertebrae C1
vertebrae L5; vertebrae T12; intestine; adrenal; rectum; head of femur left; cervical spine C7
thoracic spine T1; lumbar spine L6; coccygis; additional 13th thoracic vertebra, T13
additional 13th thoracic vertebra T13; pancreatic lesion; colon cancer; hepatic vessels; tumour
lung tumours
"""
ASKED: dict[str, Callable[[Term, int], Turn]] = {
    "presence": lambda each, key: prompts.presence(each, key, absent=False),
    "rec": lambda each, key: prompts.rec(each, BOX, key),
    "rec described": lambda each, key: prompts.rec(each, BOX, key, described=True),
    "reg": lambda each, key: prompts.reg(each, BOX, key),
    "reg explained": lambda each, key: prompts.reg(each, BOX, key, explained=True),
    "segmentation": lambda each, key: prompts.segmentation(each, key, absent=False),
    "referring": lambda each, key: prompts.referring(each, key, absent=False),
}
ABSENT: dict[str, Callable[[Term, int], Turn]] = {
    "presence": lambda each, key: prompts.presence(each, key, absent=True),
    "rec": lambda each, key: prompts.rec(each, None, key),
    "rec described": lambda each, key: prompts.rec(each, None, key, described=True),
    "reg": lambda each, key: prompts.reg_absent(each, term("spleen"), BOX, key),
    "segmentation": lambda each, key: prompts.segmentation(each, key, absent=True),
    "referring": lambda each, key: prompts.referring(each, key, absent=True),
}
BOTH = ASKED | {f"no {name}": ask for name, ask in ABSENT.items()}


def sides(text: str) -> set[str]:
    return set(re.findall(r"\b(left|right)\b", text.lower()))


def skeleton(line: str) -> str:
    """Reduce a sentence to what a template consists of: words without what is put in."""
    plain = line.casefold()
    for _, name, _, _ in string.Formatter().parse(line):
        plain = plain.replace(f"{{{name}}}", " ")
    return " ".join(re.findall(r"[a-z]+", plain))


def test_no_template_equals_a_sentence_of_the_reference() -> None:
    rows = json.loads((reference.folder("text") / "prompts.json").read_text())["rows"]
    said = {each["question"].replace(IMAGE, "").strip() for each in rows}
    said |= {each["answer"].strip() for each in rows}
    assert len(said) > 30
    ours = [line for parts in templates().values() for lines in parts.values() for line in lines]
    for line in ours:
        if skeleton(line) in {"yes", "no"}:  # nobody's
            continue
        assert skeleton(line), "a template that is only what is put in is anybody's"
        wanted = re.escape(line)
        for slot in ("what", "the", "description", "box", "other"):
            wanted = wanted.replace(re.escape(f"{{{slot}}}"), "(.+)")
        same = [each for each in said if re.fullmatch(wanted, each, re.IGNORECASE)]
        assert not same, line
    for each in (each for found in terms() for each in found.descriptions):
        assert not [sentence for sentence in said if each.casefold() in sentence.casefold()]


def test_there_are_templates_enough_and_none_twice() -> None:
    assert set(templates()) == set(SLOTS)
    for section, parts in templates().items():
        for part, lines in parts.items():
            assert len(set(lines)) == len(lines), section
            least = 1 if section == "presence" else 3
            assert len(lines) >= (10 if section == "caption" else least), f"{section}.{part}"


def test_the_dictionary_has_structures_enough_with_descriptions_of_their_own() -> None:
    found = terms()
    assert len({each.name.removeprefix(f"{each.side} ") for each in found}) >= 60
    said = [line for each in found for line in each.descriptions]
    assert len(set(said)) == len(said), "one description of two terms"
    for each in found:
        assert len(each.descriptions) >= 3
        for line in each.descriptions:
            assert line == line.strip().rstrip(".")
            assert line.split()[0].islower() or line.split()[0] in {"ilium", "ilium,"}


def test_a_description_does_not_give_the_name_away() -> None:
    for each in terms():
        name = each.name.removeprefix(f"{each.side} ")
        for line in each.descriptions:
            assert not re.search(rf"\b{re.escape(name)}\b", line, re.IGNORECASE), each.name


@pytest.mark.parametrize(
    "name", [" ".join(each.split()) for each in re.split(r"[;\n]", PUBLISHED) if each.strip()]
)
def test_every_published_class_is_in_the_dictionary_on_its_side(name: str) -> None:
    found = term(name)
    assert len(found.descriptions) >= 3
    assert {found.side} - {""} == sides(name) == sides(found.name)


def test_spellings_of_one_structure_are_one_term() -> None:
    for names in (
        ("kidney left", "left kidney", "Left  Kidney", "left_kidney"),
        ("postcava", "inferior vena cava", "vena cava"),
        ("gall bladder", "gallbladder"),
        ("vertebrae T3", "thoracic spine T3", "vertebra T3"),
        ("rib left 10", "left rib 10"),
        ("left suprarenal gland", "adrenal gland left", "left adrenal gland"),
    ):
        assert len({term(each) for each in names}) == 1, names
    assert term("left kidney") != term("right kidney") != term("kidney")


@pytest.mark.parametrize(
    "name", ["xyzzy duct left", "lung middle lobe left", "liver tumor 01", "right"]
)
def test_an_unknown_name_or_side_has_no_description_and_keeps_its_words(name: str) -> None:
    found = term(name)
    assert (found.name, found.descriptions) == (name, ())
    assert {found.side} - {""} == sides(name)
    assert prompts.segmentation(found, 1, absent=True).answer.count(name) <= 1
    with pytest.raises(ModelError, match="has no description"):
        prompts.referring(found, 1, absent=False)


def test_descriptions_of_a_pair_differ_by_their_side_and_nothing_else() -> None:
    pairs = [
        each
        for each in terms()
        if each.side == "left" and "atrium" not in each.name and "ventricle" not in each.name
    ]
    assert len(pairs) > 30
    for left in pairs:
        right = term(left.name.replace("left", "right", 1))
        assert right.side == "right"
        assert [each.replace("left", "right") for each in left.descriptions] == list(
            right.descriptions
        )
        assert all(sides(each) == {"left"} for each in left.descriptions)


@pytest.mark.parametrize("task", BOTH)
def test_words_never_name_another_side(task: str) -> None:
    for each in terms():
        for key in range(4):
            turn = BOTH[task](each, key)
            said = sides(turn.question) | sides(turn.answer)
            if each.side:
                assert said == {each.side}, (task, each.name, turn)
            else:
                assert not said, (task, each.name, turn)


@pytest.mark.parametrize("task", ABSENT)
def test_what_is_absent_is_said_without_a_mask_or_a_box(task: str) -> None:
    for key in range(50):
        turn = ABSENT[task](term("left kidney"), key)
        assert SEG not in turn.question + turn.answer
        assert "<bx_start>" not in turn.answer
        if task == "presence":
            assert turn.answer == "No"
        else:
            assert "left kidney" in turn.answer
            assert re.search(r"\b(no|none|not|nothing|missing)\b", turn.answer, re.IGNORECASE)


@pytest.mark.parametrize("task", ASKED)
def test_what_is_there_is_shown_once(task: str) -> None:
    for key in range(50):
        turn = ASKED[task](term("left kidney"), key)
        text = turn.question + turn.answer
        assert turn.answer.count(SEG) == (task in {"segmentation", "referring"})
        assert SEG not in turn.question
        assert (
            text.count(box_text(BOX))
            == text.count("<bx_start>")
            == ("re" in task[:2] and "f" not in task[:3])
        )
        assert (box_text(BOX) in turn.answer) == task.startswith("rec")
        assert "{" not in text
        assert turn.question[0].isupper() or turn.question.startswith("<")
        assert not re.search(r"\b(no|none|not|missing)\b", turn.answer, re.IGNORECASE)


def test_every_template_is_chosen_sooner_or_later() -> None:
    seen = {prompts.caption(seed) for seed in range(400)}
    assert seen == set(templates()["caption"]["questions"])


def test_a_choice_follows_from_its_key_in_every_process_and_release() -> None:
    chosen = "".join(pick("abcdefgh", "key", number) for number in range(16))
    assert chosen == "hcgdcbfcgbhhdbha"
    assert set("".join(pick("abcdefgh", number) for number in range(64))) == set("abcdefgh")
    assert pick(range(1000), "a", "bc") != pick(range(1000), "ab", "c")


def test_a_box_and_choices_are_written_as_the_released_checkpoints_learnt_them() -> None:
    assert (
        box_text((1 / 3, 0, 0.12345, 1, 0.5, 0.9996))
        == "<bx_start>[0.333, 0.0, 0.123, 1.0, 0.5, 1.0]<bx_end>"
    )
    rows = json.loads((reference.folder("text") / "prompts.json").read_text())["rows"]
    told = next(each for each in rows if each["dataset"] == "vqa_closed")
    choices = ["Axial", "Sagittal", "Coronal", "Oblique"]
    assert (
        choice_text("What plane is this?", choices) == told["question"].replace(IMAGE, "").strip()
    )
    boxed = next(each for each in rows if each["dataset"] == "rec_cls")
    assert box_text(BOX) in boxed["answer"]


@pytest.mark.parametrize(
    ("section", "part", "line"),
    [
        ("segmentation", "present", "Here it is."),
        ("segmentation", "absent", "No {what}: [SEG]."),
        ("segmentation", "questions", "Outline {the} on the left."),
        ("rec_word", "present", "It is there."),
        ("rec_word", "present", "{box} or {box}."),
        ("rec_word", "absent", "No {what} in {box}."),
        ("rec_word", "questions", "Where is {name}?"),
    ],
)
def test_a_template_that_would_lie_is_refused(section: str, part: str, line: str) -> None:
    with pytest.raises(ModelError, match=rf"templates.toml, {section}.{part}"):
        prompts._check(section, part, line)


def test_a_correction_is_made_only_to_the_name_it_is_of() -> None:
    assert corrected("0014", 21, "lumbar spine L1") == "lumbar spine L2"
    assert corrected("0014", 20, "lumbar spine L1") == "lumbar spine L1"
    assert corrected("0014", 21, "lumbar spine L2") == "lumbar spine L2"
    assert corrected("0022", 2, "tumour") == "pancreas tumour"
    assert len(term("pancreas tumour").descriptions) >= 3
