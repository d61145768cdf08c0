"""What a checkpoint sees: as if each question were asked alone, and counted by hand."""

from dataclasses import dataclass
from pathlib import Path

import handful
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name

from model import load
from model.data.corpus import telling
from model.data.corpus.scene import Pool, Scene
from model.data.sample import Sample, Task
from model.data.tokens import Layout, Tokens, encode
from model.errors import ModelError
from model.lamed import LaMed
from model.training.seeing import FIRST_SEED, Kind, Seen, auc, measure

SEEDS = range(FIRST_SEED, FIRST_SEED + 8)


@dataclass(frozen=True)
class Seeing:
    lamed: LaMed
    pool: Pool
    seen: Seen
    steps: list[tuple[int, int]]

    def kinds(self) -> dict[tuple[str, str], Kind]:
        return {(each.region, each.word): each for each in self.seen.kinds}


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Seeing:
    folder = tmp_path_factory.mktemp("seeing")
    lamed = load(handful.lamed(folder / "lamed"))
    pool, steps = Pool(folder / "phantoms", handful.GRID), list[tuple[int, int]]()
    seen = measure(lamed, pool, SEEDS, lambda *done: steps.append(done))
    return Seeing(lamed, pool, seen, steps)


def image(patient: Scene) -> Tensor:
    return torch.from_numpy(patient.image)[None, None]


def tokens(lamed: LaMed, question: str, answer: str, task: Task = Task.OPEN_VQA) -> Tokens:
    sample = Sample("x", task, Path("x"), question, answer, "x")
    return encode(sample, lamed.tokenizer, Layout.of(lamed.network.config))


@torch.no_grad()
def margin(lamed: LaMed, patient: Scene, claim: str) -> float:
    """Ask one question by itself, and look at its last token."""
    yes, no = (
        tokens(lamed, f"Is there a {claim}?", answer).input_ids for answer in ("Yes.", "No.")
    )
    first = next(at for at, (a, b) in enumerate(zip(yes, no, strict=False)) if a != b)
    told = lamed.network(image(patient), torch.tensor([yes[:first]])).logits[0, -1]
    return float(told[yes[first]] - told[no[first]])


@torch.no_grad()
def likeness(lamed: LaMed, patient: Scene, word: str) -> float:
    seen = lamed.network.encode_image(image(patient))[0]
    name = lamed.network.model.embed_tokens.weight[lamed.tokenizer.encode_within(word)].mean(dim=0)
    return float(F.cosine_similarity(seen, name.roll(len(name) // 2)[None]).max())


def has(patient: Scene, word: str, side: str = "") -> bool:
    return any(
        telling.named(each.kind) == word and each.number and side in ("", each.side)
        for each in patient.truth.findings
    )


def test_auc_counts_pairs_and_ties_as_half() -> None:
    assert auc([1.0, 3.0, 2.0, 2.0], [False, True, False, True]) == (0.5 + 1 + 1 + 1) / 4
    assert auc([1.0, 2.0], [True, True]) is None
    assert auc([1.0, 2.0], [False, False]) is None
    assert auc([], []) is None


def test_every_kind_is_scored_as_if_it_were_asked_alone(seeing: Seeing) -> None:
    patients, compared = [seeing.pool[seed] for seed in SEEDS], 0
    for (region, word), kind in seeing.kinds().items():
        own = [
            each
            for each in patients
            if each.truth.region == region and word in telling.possible(each.truth)
        ]
        truths = [has(each, word) for each in own]
        margins = [margin(seeing.lamed, each, word) for each in own]
        assert (kind.patients, kind.having) == (len(own), sum(truths))
        right = [(said > 0) == truly for said, truly in zip(margins, truths, strict=True)]
        assert kind.accuracy == sum(right) / len(own)
        assert kind.asked == auc(margins, truths)
        assert kind.naming == auc([likeness(seeing.lamed, each, word) for each in own], truths)
        compared += kind.asked is not None
    assert compared >= 2


def test_sides_are_asked_of_those_who_have_one(seeing: Seeing) -> None:
    patients, compared = [seeing.pool[seed] for seed in SEEDS], 0
    for (region, word), kind in seeing.kinds().items():
        asked = [
            (margin(seeing.lamed, each, f"{word} on the {side} side"), has(each, word, side))
            for each in patients
            if each.truth.region == region and has(each, word)
            for side in ("left", "right")
            if has(each, word, "left") or has(each, word, "right")
        ]
        assert kind.sided == len(asked)
        assert kind.side == auc([said for said, _ in asked], [truly for _, truly in asked])
        compared += kind.side is not None
    assert compared


def test_the_losses_of_the_reports_are_those_of_a_plain_forward(seeing: Seeing) -> None:
    lamed, sums, count = seeing.lamed, {"image": 0.0, "zeros": 0.0}, 0
    for seed in SEEDS:
        patient = seeing.pool[seed]
        shown = telling.SHOWN[patient.truth.region, patient.truth.modality]
        question = f"Describe the findings of this {shown}."
        made = tokens(lamed, question, telling.report(patient.truth), Task.CAPTION)
        learnt = sum(each >= 0 for each in made.labels)
        ids, labels = torch.tensor([made.input_ids]), torch.tensor([made.labels])
        for name, given in (("image", image(patient)), ("zeros", torch.zeros_like(image(patient)))):
            with torch.no_grad():
                sums[name] += float(lamed.network(given, ids, labels=labels).language_loss) * learnt
        count += learnt
    assert seeing.seen.report == pytest.approx(sums["image"] / count, rel=1e-4)
    assert seeing.seen.blind == pytest.approx(sums["zeros"] / count, rel=1e-4)
    assert seeing.seen.report != seeing.seen.blind


def test_what_is_told_of_all_kinds_is_their_sum_and_mean(seeing: Seeing) -> None:
    kinds, seen = seeing.seen.kinds, seeing.seen
    asked = sum(each.patients for each in kinds)
    right = sum(each.accuracy * each.patients for each in kinds)
    assert seen.accuracy == pytest.approx(right / asked)
    usual = sum(max(each.having, each.patients - each.having) for each in kinds)
    assert seen.usual == usual / asked
    known = [each.side for each in kinds if each.side is not None]
    assert seen.side == pytest.approx(sum(known) / len(known))
    assert (seen.first, seen.patients) == (FIRST_SEED, len(SEEDS))
    assert seeing.steps == [(done, len(SEEDS)) for done in range(1, len(SEEDS) + 1)]


def test_patients_of_another_grid_and_none_at_all_are_refused(seeing: Seeing) -> None:
    other = Pool(seeing.pool.folder, (32, 32, 32))
    with pytest.raises(ModelError, match=r"patients of \(16, 32, 32\), got 8 of \(32, 32, 32\)"):
        measure(seeing.lamed, other, SEEDS)
    with pytest.raises(ModelError, match=r"got 0 of"):
        measure(seeing.lamed, seeing.pool, range(0))
