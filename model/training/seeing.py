"""What a checkpoint sees: findings named, told with yes or no, and on their side; and its reports.

Knows a network that answers and patients of the corpus with their truth; trains nothing. Nothing
is generated: what is measured is how likely right words are, so a checkpoint that has not learnt
to speak can be measured too.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name

from model.data.corpus import scene, telling
from model.data.corpus.scene import Pool, Scene
from model.data.corpus.telling import Turn
from model.data.tokens import IGNORED, Layout, Tokens, encode
from model.errors import ModelError
from model.lamed import LaMed

from .examples import Example, sample_of
from .objectives import likeness
from .packing import pack

FIRST_SEED: Final = 900_000  # training has far lower ones, the benchmark those from 1,000,000
REPORT: Final = telling.CAPTIONS[1]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Claim:
    """Something that is said of a patient, whether it is true, and what speaks for it.

    `margin` is the logit of yes above that of no. `likeness`, of a claim without a side, is the
    cosine between the word and the image token that is most like it.
    """

    region: str
    word: str
    side: str
    truly: bool
    margin: float
    likeness: float


@dataclass(frozen=True)
class Kind:
    """How well one kind of finding is seen in the patients of its region and modality.

    AUC is None where all patients have it, or none has. `naming` is by likeness, `asked` and
    `accuracy` by yes or no; `side` is of `sided` questions for a side, asked of those who have it.
    """

    region: str
    word: str
    patients: int
    having: int
    naming: float | None
    asked: float | None
    accuracy: float
    sided: int
    side: float | None


@dataclass(frozen=True)
class Seen:
    """What a checkpoint sees in `patients` of the `corpus`, from seed `first` on.

    The AUC are means over `kinds`, `accuracy` is over all yes-or-no questions without a side and
    `usual` what the more frequent answer to each of them would give. Report losses are nats per
    token of the true report, in `blind` with an image of zeros.
    """

    corpus: int
    first: int
    patients: int
    naming: float | None
    asked: float | None
    accuracy: float
    usual: float
    side: float | None
    report: float
    blind: float
    kinds: tuple[Kind, ...]


def measure(lamed: LaMed, pool: Pool, seeds: range, on_progress: Progress | None = None) -> Seen:
    """Show a checkpoint the patients of `seeds`, and ask what it sees.

    Raises
    ------
    ModelError
        There is no patient, or `pool` is of another grid than the network's.
    """
    grid = lamed.network.config.vision.image_size
    if not seeds or pool.grid != grid:
        raise ModelError(f"expected patients of {grid}, got {len(seeds)} of {pool.grid}")
    reader, readings = _Reader(lamed), list[_Reading]()
    for done, seed in enumerate(seeds, 1):
        readings.append(reader.read(pool[seed]))
        if on_progress is not None:
            on_progress(done, len(seeds))
    return _seen(readings, seeds)


def auc(scores: Sequence[float], truths: Sequence[bool]) -> float | None:
    """Tell how often what is true scores above what is not; None without one of either."""
    values, true = np.array(scores), np.array(truths, bool)
    above = values[true][:, None] - values[~true][None, :]
    return float(((above > 0) + 0.5 * (above == 0)).mean()) if above.size else None


@dataclass(frozen=True)
class _Reading:
    """What one patient gave; losses are summed over the `tokens` of the report."""

    claims: list[Claim]
    report: float
    blind: float
    tokens: int


class _Reader:
    """A network, with what is the same for all patients."""

    def __init__(self, lamed: LaMed) -> None:
        self.network, self.words = lamed.network.eval(), lamed.tokenizer
        self.layout = Layout.of(self.network.config)
        self._blank: Tensor | None = None

    @torch.no_grad()
    def read(self, patient: Scene) -> _Reading:
        """Ask of one patient, with the image; and tell its report, with the image and without."""
        image = torch.from_numpy(patient.image)[None, None]
        image = image.to(self.network.lm_head.weight)
        if self._blank is None:
            self._blank = self.network.encode_image(torch.zeros_like(image))
        seen = self.network.encode_image(image)
        asked = list(_asked(patient))
        pairs = [[self._tokens(patient, turn) for turn in both] for *_, both in asked]
        report = self._tokens(patient, _report(patient))
        hidden, labels = self._hidden(seen, [*(yes for yes, _ in pairs), report])
        margins = self._margins(hidden, pairs)
        claims = [
            Claim(patient.truth.region, word, side, truly, margin,
                  self._likeness(seen[0], word))
            for (word, side, truly, _), margin in zip(asked, margins, strict=True)
        ]  # fmt: skip
        count = sum(each != IGNORED for each in report.labels)
        blind = self._loss(*self._hidden(self._blank, [report]), count)
        return _Reading(claims, self._loss(hidden, labels, count), blind, count)

    def _tokens(self, patient: Scene, turn: Turn) -> Tokens:
        return encode(sample_of(patient, turn), self.words, self.layout)

    def _hidden(self, seen: Tensor, asked: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
        """Read questions with their answers behind an image: states (L, H), labels (L,)."""
        network = self.network
        none = np.zeros((1, 0, 0, 0), np.float32)  # the image is read already
        example = Example(none, tuple(asked), (None,) * len(asked))
        packs = pack([example], self.layout, network.config.seg_token_id)
        device = seen.device
        states = network.model(
            inputs_embeds=network.embed(packs.input_ids.to(device), seen),
            attention_mask=packs.attention.to(device),
            position_ids=packs.position_ids.to(device),
            use_cache=False,
        ).last_hidden_state
        return states[0], packs.labels[0].to(device)

    def _margins(self, hidden: Tensor, pairs: Sequence[Sequence[Tokens]]) -> list[float]:
        """Tell of each question how far yes is above no, where the two part."""
        prefix = 1 + self.layout.image_tokens
        begin, margins = prefix, []
        for yes, no in pairs:
            both = enumerate(zip(yes.input_ids, no.input_ids, strict=False))
            part, said = next((at, ids) for at, ids in both if ids[0] != ids[1])
            logits = self.network.lm_head(hidden[begin + part - prefix - 1])[list(said)]
            margins.append(float(logits[0] - logits[1]))
            begin += len(yes.input_ids) - prefix
        return margins

    def _likeness(self, seen: Tensor, word: str) -> float:
        pieces = self.network.model.embed_tokens.weight[self.words.encode_within(word)]
        return float(likeness(seen, pieces.float().mean(dim=0, keepdim=True)).max())

    def _loss(self, hidden: Tensor, labels: Tensor, count: int) -> float:
        """Sum the loss of the last `count` learnt tokens."""
        places = (labels != IGNORED).nonzero().flatten()[-count:]
        logits = self.network.lm_head(hidden[places - 1]).float()
        return float(F.cross_entropy(logits, labels[places], reduction="sum"))


def _asked(patient: Scene) -> Iterator[tuple[str, str, bool, tuple[Turn, Turn]]]:
    """Claim each kind that the region can have, and both sides of what has one; with the truth."""
    for word, sides in telling.possible(patient.truth).items():
        there = telling.sides_of(patient.truth, word)
        yield word, "", bool(there), _both(word)
        if there - {""}:
            for side in sorted(sides):
                yield word, side, side in there, _both(f"{word} on the {side} side")


def _both(claim: str) -> tuple[Turn, Turn]:
    question = f"Is there a {claim}?"
    return Turn("open_vqa", question, "Yes."), Turn("open_vqa", question, "No.")


def _report(patient: Scene) -> Turn:
    truth = patient.truth
    what = telling.SHOWN[truth.region, truth.modality]
    return Turn("caption", REPORT.format(what=what), telling.report(truth))


def _seen(readings: Sequence[_Reading], seeds: range) -> Seen:
    claims = [claim for each in readings for claim in each.claims]
    tokens = sum(each.tokens for each in readings)
    whole = [each for each in claims if not each.side]
    kinds = [
        _kind([each for each in claims if (each.region, each.word) == kind])
        for kind in sorted({(each.region, each.word) for each in claims})
    ]
    usual = sum(max(each.having, each.patients - each.having) for each in kinds)
    return Seen(
        corpus=scene.VERSION,
        first=seeds.start,
        patients=len(seeds),
        naming=_mean([each.naming for each in kinds]),
        asked=_mean([each.asked for each in kinds]),
        accuracy=_accuracy(whole),
        usual=usual / len(whole),
        side=_mean([each.side for each in kinds]),
        report=sum(each.report for each in readings) / tokens,
        blind=sum(each.blind for each in readings) / tokens,
        kinds=tuple(kinds),
    )


def _kind(claims: Sequence[Claim]) -> Kind:
    whole = [each for each in claims if not each.side]
    sided = [each for each in claims if each.side]
    truths = [each.truly for each in whole]
    return Kind(
        region=claims[0].region,
        word=claims[0].word,
        patients=len(whole),
        having=sum(truths),
        naming=auc([each.likeness for each in whole], truths),
        asked=auc([each.margin for each in whole], truths),
        accuracy=_accuracy(whole),
        sided=len(sided),
        side=auc([each.margin for each in sided], [each.truly for each in sided]),
    )


def _accuracy(claims: Sequence[Claim]) -> float:
    return sum((each.margin > 0) == each.truly for each in claims) / len(claims)


def _mean(found: Sequence[float | None]) -> float | None:
    known = [each for each in found if each is not None]
    return sum(known) / len(known) if known else None
