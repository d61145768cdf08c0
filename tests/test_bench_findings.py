"""What two reports say, finding by finding; every sentence here is invented."""

import re
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.bench import lexicon
from model.bench.clauses import sentences
from model.bench.findings import Comparison, Statement, agree, compare, read
from model.data.corpus.findings import KINDS, REMOVABLE, Finding
from model.data.corpus.telling import TOPICS, sentence

unhurried = settings(deadline=None)  # a busy machine is no slow function

# A sentence, and what it says: "no" is denied, the side, the organ, the finding.
SENTENCES = (
    ("There is a nodule in the upper part of the right lung.", "right lung nodule"),
    ("A 7 mm pulmonary nodule sits in the left lower lobe.", "left lung nodule"),
    ("Several nodules in both lungs.", "bilateral lung nodule"),
    ("Nodules in the right upper lobe and left lower lobe.", "bilateral lung nodule"),
    ("Right and left renal cysts.", "bilateral kidney cyst"),
    ("Right-sided pneumothorax.", "right pleura pneumothorax"),
    ("Pleural effusion, left greater than right.", "bilateral pleura effusion"),
    ("In the left kidney, there is a 4 mm stone.", "left kidney stone"),
    ("Left kidney normal, stone in the right kidney.", "right kidney stone"),
    ("Effusion on the left and nodule on the right.", "left pleura effusion, right nodule"),
    (
        "The right kidney contains a cyst and the left kidney a stone.",
        "right kidney cyst, left kidney stone",
    ),
    ("A stone or a cyst in the left kidney.", "left kidney stone, left kidney cyst"),
    ("Right renal cyst and stone.", "right kidney cyst, right kidney stone"),
    ("Left pleural effusion and cardiomegaly.", "left pleura effusion, heart cardiomegaly"),
    ("Nodule in the right lung and the left lung is clear.", "right lung nodule"),
    (
        "Right-sided tension pneumothorax with mediastinal shift to the left.",
        "right pleura pneumothorax",
    ),
    (
        "Left subdural haematoma with midline shift to the right.",
        "left brain haemorrhage, brain midline shift",
    ),
    ("Nodule in the right lung adjacent to the left atrium.", "right lung nodule"),
    ("A catheter is left in place beside a cyst of the liver.", "liver cyst"),
    ("Pneumothorax of the right lung.", "right pleura pneumothorax"),
    ("Pneumothorax, with the mediastinum pushed to the left.", "pleura pneumothorax"),
    ("The cyst in the left kidney contains a stone.", "left kidney cyst, stone"),
    ("Effusion and consolidation in the right lung.",
     "right pleura effusion, right lung consolidation"),
    ("A hepatic cyst and a nodule on the right.", "liver cyst, right nodule"),
    ("A hepatic cyst beside the right kidney.", "liver cyst"),
    ("Gallstone and cyst in the left kidney.", "gallbladder stone, left kidney cyst"),
    ("Right kidney normal left renal cyst.", "left kidney cyst"),
    ("Kidneys and spleen: multiple cysts.", "cyst"),
    # Denied: forward, over lists, backward.
    ("There is no nodule or mass in the lungs.", "no lung nodule, no lung mass"),
    (
        "No effusion, pneumothorax, or consolidation.",
        "no pleura effusion, no pleura pneumothorax, no lung consolidation",
    ),
    ("No effusion, consolidation and pneumothorax.",
     "no pleura effusion, no lung consolidation, no pleura pneumothorax"),
    ("No pneumothorax, large effusion, or small mass.",
     "no pleura pneumothorax, no pleura effusion, no mass"),
    ("No evidence of the known effusion.", "no pleura effusion"),
    ("A nodule in the liver or a cyst in the kidney is not seen.",
     "no liver nodule, no kidney cyst"),
    ("No mass or history of stroke.", "no mass"),
    ("Neither haemorrhage nor infarct is seen.", "no haemorrhage, no infarct"),
    ("The lungs are free of nodules.", "no lung nodule"),
    ("A thick gallbladder wall without stones.", "no gallbladder stone"),
    ("Absence of hydronephrosis in the left kidney.", "no left kidney hydronephrosis"),
    ("Negative for pulmonary embolism.", "no lung pulmonary embolism"),
    ("There isn't a fracture of the spine.", "no spine fracture"),
    ("Effusion and pneumothorax are not seen.", "no pleura effusion, no pleura pneumothorax"),
    ("Pneumothorax: none.", "no pleura pneumothorax"),
    ("Liver: no focal lesion.", "no liver lesion"),
    ("The effusion on the right has resolved.", "no right pleura effusion"),
    ("A mass is no longer seen in the pancreas.", "no pancreas mass"),
    ("No pleural or pericardial effusion.", "no pleura effusion, no pericardium effusion"),
    ("No effusion on either side.", "no bilateral pleura effusion"),
    ("No left pleural effusion; small effusion on the right.",
     "no left pleura effusion, right pleura effusion"),
    # Where a denial ends.
    (
        "No effusion, but a nodule in the left lung.",
        "no pleura effusion, left lung nodule",
    ),
    ("No pneumothorax, small left effusion.", "no pleura pneumothorax, left pleura effusion"),
    ("No pneumothorax, a nodule of the spleen.", "no pleura pneumothorax, spleen nodule"),
    ("Small left effusion, no pneumothorax.", "left pleura effusion, no pleura pneumothorax"),
    ("There is no effusion and the nodule is stable.", "no pleura effusion, nodule"),
    ("No hydronephrosis; however, a stone lies in the left ureter.",
     "no kidney hydronephrosis, left ureter stone"),
    ("No abnormality apart from a small stone in the gallbladder.", "gallbladder stone"),
    ("A mass without calcification in the right kidney.",
     "right kidney mass, no right kidney calcification"),
    ("Consolidation in the right lung. No. It is a mass.", "right lung consolidation, mass"),
    # Denials of something else.
    ("No change in the nodule.", "nodule"),
    ("No significant interval growth of the left lung nodule.", "left lung nodule"),
    ("No pneumothorax after biopsy of the right nodule.", "no pleura pneumothorax, right nodule"),
    ("The effusion has not resolved.", "pleura effusion"),
    ("The effusion has almost resolved.", "pleura effusion"),
    ("Nodule no larger than 4 mm in the right lung.", "right lung nodule"),
    ("The CT without contrast shows a cyst in the liver.", "liver cyst"),
    ("The mass in the liver was not seen previously.", "liver mass"),
    ("Not only a nodule but a mass in the left lung.", "nodule, left lung mass"),
    ("Image No. 3 shows a cyst of the spleen.", "spleen cyst"),
    ("No enlarged lymph nodes.", "no lymphadenopathy"),
    # Neither affirmed nor denied.
    ("A fracture cannot be excluded.", ""),
    ("Rule out fracture.", ""),
    ("No new nodule.", ""),
    ("Please evaluate for pulmonary embolism.", ""),
    ("Nodule of the left lung, unlikely to be a metastasis.", "left lung nodule"),
    # Words that look like findings.
    ("Mass effect on the left ventricle.", ""),
    ("The cystic duct and the lymph nodes are normal.", ""),
    ("Body mass index 31; kidney stone protocol.", ""),
    ("The peritoneal cavity is normal.", ""),
    ("A massive cystitis.", ""),
    # Organs that are not there.
    ("The left kidney is absent.", "left kidney absence"),
    ("Both the spleen and the left kidney are missing.", "spleen absence, left kidney absence"),
    ("Status post cholecystectomy.", "gallbladder absence"),
    ("No organ is missing.", "no absence"),
    ("The spleen is not enlarged.", ""),
    ("Intracranial enhancement was not detected.", ""),
)  # fmt: skip

WORDS = st.sampled_from(
    [
        *("nodule", "mass", "effusion", "stones", "left", "right", "bilateral", "lung", "kidney"),
        *("no", "without", "not seen", "and", "or", ",", "but", ".", ";", "in the", "there is"),
        *("a", "the", "small", "absent", "is", "are", "no change in", "resolved", ":", "\n"),
    ]
)
TEXTS = st.lists(WORDS, max_size=25).map(" ".join)
FINDINGS = st.sampled_from(["nodule", "mass", "cyst", "haemorrhage", "abscess"])
PLACES = st.sampled_from(["lung", "liver", "kidney", "brain", "pancreas"])
SIDES = st.sampled_from(["left", "right"])
SWAPPED = {"left": "right", "right": "left"}


def said(text: str) -> set[str]:
    return {_words(each) for each in read(text)}


def _words(each: Statement) -> str:
    parts = ["" if each.present else "no", each.side, each.organ, each.finding]
    return " ".join(part for part in parts if part)


@pytest.mark.parametrize(("sentence", "expected"), SENTENCES)
def test_a_sentence_says_what_a_reader_understands(sentence: str, expected: str) -> None:
    assert said(sentence) == {each for each in expected.split(", ") if each}


# Where the corpus calls a thing by another name than the lexicon does.
CALLED = {"gallstone": "stone", "tumour": "mass"}
PLANTED = [
    (kind.name, organ.removeprefix(f"{side} ") if side else organ, side)
    for kind in KINDS.values()
    for organ in kind.organs
    for side in (("left", "right") if organ == "brain" else (organ.split()[0],))
    for side in (side if side in ("left", "right") else "",)
]
GONE = [
    ("absence", each.split()[-1], each.removesuffix(each.split()[-1]).strip()) for each in REMOVABLE
]


@pytest.mark.parametrize(("kind", "organ", "side"), [*PLANTED, *GONE])
def test_what_the_corpus_plants_is_read_from_its_reports(kind: str, organ: str, side: str) -> None:
    expected = Statement(CALLED.get(kind, kind), "pleura" if kind == "effusion" else organ, side)
    for zone in ("upper", "posterior"):
        assert read(sentence(Finding(kind, organ, side, zone, 1))) == {expected}


def test_what_the_corpus_denies_is_read_as_denied() -> None:
    for topic in TOPICS:
        denied = read(topic.none)
        assert {each.finding for each in denied} == {CALLED.get(kind, kind) for kind in topic.kinds}
        assert not any(each.present for each in denied)


def test_there_are_at_least_sixty_sentences_and_each_finding_of_the_corpus_among_them() -> None:
    assert len(SENTENCES) >= 60
    told = " ".join(expected for _, expected in SENTENCES)
    for kind in ("nodule", "mass", "consolidation", "effusion", "fracture", "lesion", "cyst"):
        assert kind in told
    for kind in ("stone", "haemorrhage", "absence", "pneumothorax"):
        assert kind in told


def test_a_report_says_each_finding_of_an_organ_once() -> None:
    report = """
    Findings: There is a right pleural effusion. A left pleural effusion is also seen.
    The nodule in the left lung is solid. The nodule measures 8 mm.
    Impression: bilateral effusions; pulmonary nodule.
    """
    assert said(report) == {"bilateral pleura effusion", "left lung nodule"}


def test_a_side_told_later_belongs_to_the_one_finding_that_has_none() -> None:
    assert said("Pulmonary nodule. The nodule is on the left.") == {"left lung nodule"}
    assert said("Nodule in the lung and nodule in the liver. The nodule is on the left.") == {
        "lung nodule",
        "liver nodule",
    }


def test_why_one_looked_is_not_what_one_saw() -> None:
    report = """INDICATION: known mass in the left kidney
    TECHNIQUE: without contrast
    FINDINGS: No mass. Comparison: none. Cyst in the right kidney."""
    assert said(report) == {"no mass", "right kidney cyst"}


def test_lines_break_and_bullets_part_but_a_wrapped_line_goes_on() -> None:
    assert said("- Cyst in the left\nkidney\n- No stone\n- Fracture of a rib") == {
        "left kidney cyst",
        "no stone",
        "rib fracture",
    }
    assert said("Left renal cyst.No stone") == {"left kidney cyst", "no stone"}
    assert list(sentences("Nodule of 1.5 cm, approx. 3 cm from the pleura.")) == [
        "nodule of 1.5 cm , approx 3 cm from the pleura"
    ]


@pytest.mark.parametrize("text", ["", " ", ".", "\n\n", "...;;", "ünïcödé ☢ 肺", "No.", "left"])
def test_what_says_nothing_of_findings_says_nothing(text: str) -> None:
    assert read(text) == frozenset()
    assert compare(text, text) == Comparison()


@unhurried
@given(FINDINGS, PLACES, SIDES)
def test_every_finding_is_read_affirmed_denied_and_on_its_side(
    finding: str, organ: str, side: str
) -> None:
    place = f"in the {side} part of the {organ}"
    for text in (f"There is a {finding} {place}.", f"The {side} {organ} shows {finding}s."):
        assert read(text) == {Statement(finding, organ, side)}
    for text in (f"There is no {finding} {place}.", f"A {finding} {place} is not seen."):
        assert read(text) == {Statement(finding, organ, side, present=False)}


@unhurried
@given(TEXTS)
def test_left_and_right_exchanged_exchange_the_sides_and_nothing_else(text: str) -> None:
    mirrored = re.sub("left|right", lambda match: SWAPPED[match[0]], text)
    assert read(mirrored) == {
        Statement(each.finding, each.organ, SWAPPED.get(each.side, each.side), each.present)
        for each in read(text)
    }


@unhurried
@given(TEXTS)
def test_a_report_agrees_with_itself(text: str) -> None:
    compared = compare(text, text)
    assert compared.extra == compared.missed == 0
    assert compared.f1 in (None, 1.0)
    assert compared.right_side == compared.sided
    assert agree(text, text) in (None, True)


@unhurried
@given(TEXTS, TEXTS)
def test_precision_of_one_is_recall_of_the_other(ours: str, theirs: str) -> None:
    there, back = compare(ours, theirs), compare(theirs, ours)
    assert (there.precision, there.recall) == (back.recall, back.precision)
    assert (there.found, there.sided, there.right_side) == (back.found, back.sided, back.right_side)
    assert 0 <= there.right_side <= there.sided <= there.found
    for part in (there.precision, there.recall, there.f1, there.laterality):
        assert part is None or 0 <= part <= 1


@unhurried
@given(TEXTS)
def test_case_and_spaces_mean_nothing(text: str) -> None:
    flat = text.replace("\n", " ")
    assert read(flat.upper()) == read(flat) == read(flat.replace(" ", "   "))


def test_two_reports_are_compared_by_hand_counted_numbers() -> None:
    truth = "Left lung nodule. Right pleural effusion. Liver cyst. No fracture."
    answer = "Right lung nodule. Right pleural effusion. Gallstone. Rib fracture."
    compared = compare(answer, truth)
    # found: nodule, effusion; extra: stone, fracture; missed: cyst; the fracture is denied.
    assert compared == Comparison(2, 2, 1, 2, 1, 1)
    assert compared.precision == pytest.approx(2 / 4)
    assert compared.recall == pytest.approx(2 / 3)
    assert compared.f1 == pytest.approx(4 / 7)
    assert compared.laterality == pytest.approx(1 / 2)


def test_a_finding_of_no_organ_is_paired_with_the_one_on_its_side() -> None:
    truth = "Left renal cyst. Right hepatic cyst."
    expected = Comparison(found=1, missed=1, sided=1, right_side=1)
    assert compare("There is a cyst on the left.", truth) == expected
    assert compare("There is a cyst on the right.", truth) == expected
    assert compare(truth, "There is a cyst on the left.").laterality == 1


def test_many_reports_are_scored_by_their_sum() -> None:
    total = sum(
        (compare(*pair) for pair in (("Left lung nodule.", "Left lung nodule."), ("", "Cyst."))),
        Comparison(),
    )
    assert total == Comparison(found=1, missed=1, sided=1, right_side=1)
    assert total.f1 == pytest.approx(2 / 3)


def test_no_finding_in_either_report_has_no_f1() -> None:
    compared = compare("Normal.", "No abnormality.")
    assert (compared.f1, compared.precision, compared.recall, compared.laterality) == (None,) * 4
    assert compare("A mass.", "Normal.").f1 == 0


@pytest.mark.parametrize(
    ("answer", "truth", "found"),
    [
        ("Cyst.", "Cyst in the liver.", 1),
        ("Cyst in the kidney.", "Cyst in the liver.", 0),
        ("Cyst in the kidney. Cyst in the liver.", "Cyst in the liver. Cyst in the kidney.", 2),
        ("Gallstone.", "Stone in the gallbladder.", 1),
        ("Nephrolithiasis on the left.", "Calculi in the left kidney.", 1),
        ("Tumor.", "A tumour.", 1),
        ("Hemorrhage.", "Haematoma.", 1),
        ("Mass.", "Nodule.", 0),
        ("The spleen is absent.", "Status post splenectomy.", 1),
    ],
)
def test_a_finding_is_the_same_in_the_same_organ(answer: str, truth: str, found: int) -> None:
    assert compare(answer, truth).found == found


@pytest.mark.parametrize(
    ("answer", "truth", "contradictions"),
    [
        ("No nodule.", "Nodule in the left lung.", 1),
        ("Nodule in the left lung.", "No nodule.", 1),
        ("Left effusion.", "No right effusion.", 0),
        ("Left effusion.", "No right effusion. Left effusion.", 0),
        ("Effusion.", "No right effusion. Left effusion.", 0),
        ("Bilateral effusion.", "No right effusion.", 1),
        ("No liver cyst.", "Cyst in the kidney.", 0),
        ("No change in the nodule.", "Nodule.", 0),
        ("Fracture cannot be excluded.", "No fracture.", 0),
    ],
)
def test_what_one_affirms_and_the_other_denies_is_a_contradiction(
    answer: str, truth: str, contradictions: int
) -> None:
    assert compare(answer, truth).contradictions == contradictions


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        ("A left lung nodule.", "There is a nodule in the left lung.", True),
        ("A right lung nodule.", "There is a nodule in the left lung.", False),
        ("A lung nodule.", "There is a nodule in the left lung.", False),
        ("A left lung nodule and a mass.", "There is a nodule in the left lung.", False),
        ("No nodule or mass is seen.", "There is no nodule or mass in the lungs.", True),
        ("There is no nodule.", "There is no nodule or mass in the lungs.", False),
        ("There is no pleural effusion.", "There is no nodule or mass in the lungs.", False),
        ("The left kidney is missing.", "The left kidney is absent.", True),
        ("No organ is absent.", "No organ is missing.", True),
        ("Arterial phase.", "Venous phase.", None),
    ],
)
def test_an_open_answer_agrees_if_it_says_the_same_and_no_finding_more(
    answer: str, truth: str, *, expected: bool | None
) -> None:
    assert agree(answer, truth) is expected


def test_the_lexicon_names_each_word_once_and_plainly() -> None:
    told = tomllib.loads(lexicon.FILE.read_text(encoding="utf-8"))
    words = [
        *told["decoys"],
        *(w for k in ("finding", "organ") for e in told[k] for w in e["words"]),
    ]
    assert len(words) == len(set(words))
    for word in words:
        assert list(sentences(word)) == [word], f"{word!r} could never be found"
    organs = {entry["name"] for entry in told["organ"]}
    fixed = {entry["organ"] for entry in told["finding"] if "organ" in entry}
    assert fixed - organs == {"soft tissue", "peritoneum"}, "an organ that no sentence can name"


@unhurried
@given(st.sampled_from(sorted(lexicon.terms())), st.sampled_from(["", "s"]))
def test_every_word_of_the_lexicon_is_found_and_its_plural(word: str, plural: str) -> None:
    term = lexicon.terms()[word]
    found = [each.term for each in lexicon.marks(f"a {word}{plural} here")]
    assert found == ([] if term.kind == lexicon.DECOY else [term])


@pytest.mark.parametrize("word", ["massive", "cystitis", "cystic", "premass", "lunge", "milestone"])
def test_a_word_inside_another_word_is_not_found(word: str) -> None:
    assert lexicon.marks(f"a {word} here") == []
