"""How close a text is to its reference: BLEU, ROUGE, METEOR, chrF. Offline, 0 to 1.

Knows strings; what they mean is for `findings`. METEOR has no synonyms here, because WordNet is a
download: words match as they are or by their Porter stem.
"""

import heapq
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise

import snowballstemmer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

ALPHA, BETA, GAMMA = 0.9, 3.0, 0.5  # METEOR: Banerjee and Lavie 2005, as NLTK writes them
WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+")
# Nearly NLTK's word_tokenize, which needs a download: hyphens and decimals stay in a word, and
# every other mark is one of its own.
TREEBANK = re.compile(r"\w+(?:[-.'/,]\w+)*|[^\w\s]")
ROUGE_WORD = re.compile("[a-z0-9]+")  # google-research's tokens, without stemming

Pairs = list[tuple[int, int]]


def score(said: str, truth: str) -> dict[str, float]:
    """Give every text metric of one answer."""
    return {
        "bleu": bleu(said, truth),
        "bleu1": bleu(said, truth, order=1),
        "rouge1": rouge1(said, truth),
        "rougeL": rouge_l(said, truth),
        "meteor": meteor(said, truth),
        "chrf": chrf(said, truth),
    }


def reference(said: str, truth: str) -> dict[str, float]:
    """Give the metrics of one answer that the published tables average.

    "bleu" is BLEU-1 and "meteor" lacks WordNet, so it is at most the published script's.
    """
    said, truth = said.strip(), truth.strip()
    words, wanted = TREEBANK.findall(said.lower()), TREEBANK.findall(truth.lower())
    return {
        "bleu": bleu(said, truth, order=1),
        "rouge1": rouge1(said, truth),
        "meteor": _meteor(len(words), len(wanted), _last_to_last(words, wanted)),
    }


def bleu(said: str, truth: str, *, order: int = 4) -> float:
    """BLEU of one answer (13a tokens, case kept); orders without a match are smoothed (exp)."""
    return _whole(_bleu(order).sentence_score(said, [truth]).score)


def corpus_bleu(said: Sequence[str], truth: Sequence[str], *, order: int = 4) -> float:
    """BLEU as Papineni et al. 2002 defined it: counted over all answers, not a mean of theirs."""
    return _whole(BLEU(max_ngram_order=order).corpus_score(list(said), [list(truth)]).score)


def chrf(said: str, truth: str) -> float:
    """ChrF2: F of character n-grams up to 6, recall weighing twice (Popovic 2015)."""
    return _whole(CHRF().sentence_score(said, [truth]).score)


def rouge1(said: str, truth: str) -> float:
    """ROUGE-1: F of shared words (Lin 2004)."""
    words, wanted = ROUGE_WORD.findall(said.lower()), ROUGE_WORD.findall(truth.lower())
    shared = (Counter(words) & Counter(wanted)).total()
    return _f(shared, len(words), len(wanted))


def rouge_l(said: str, truth: str) -> float:
    """ROUGE-L: F of the longest common subsequence of words (Lin 2004)."""
    words, wanted = ROUGE_WORD.findall(said.lower()), ROUGE_WORD.findall(truth.lower())
    return _f(_common_subsequence(words, wanted), len(words), len(wanted))


def meteor(said: str, truth: str) -> float:
    """METEOR: matched words, recall weighing nine times, less a penalty for broken order.

    Exact and stem matches; alpha 0.9, beta 3, gamma 0.5. The alignment has the fewest chunks that
    taking the longest common runs first gives. A text equal to its reference has no fragments and
    scores 1, where the formula of 2005 gives a single right word 0.5.
    """
    words, wanted = WORD.findall(said.lower()), WORD.findall(truth.lower())
    if words and words == wanted:
        return 1.0
    stems, aims = _stems(words), _stems(wanted)
    return _meteor(len(words), len(wanted), list(_tiled(stems, aims)))


def _whole(percent: float) -> float:
    """Turn a percentage into a part; 100.00000000000004 is rounding."""
    return min(float(percent) / 100, 1.0)


@cache
def _bleu(order: int) -> BLEU:
    return BLEU(max_ngram_order=order, effective_order=True)


def _f(shared: int, said: int, wanted: int) -> float:
    return 2 * shared / (said + wanted) if shared else 0.0


def _common_subsequence(words: Sequence[str], wanted: Sequence[str]) -> int:
    row = [0] * (len(wanted) + 1)
    for word in words:
        before = row
        row = [0]
        for index, aim in enumerate(wanted):
            row.append(before[index] + 1 if word == aim else max(row[-1], before[index + 1]))
    return row[-1]


def _meteor(said: int, wanted: int, pairs: Pairs) -> float:
    if not pairs:
        return 0.0
    precision, recall = len(pairs) / said, len(pairs) / wanted
    mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
    pairs = sorted(pairs)
    breaks = sum((b[0] - a[0], b[1] - a[1]) != (1, 1) for a, b in pairwise(pairs))
    return float(mean * (1 - GAMMA * ((breaks + 1) / len(pairs)) ** BETA))


def _stems(words: Sequence[str]) -> list[str]:
    return [_stem(each) for each in words]


@cache
def _stemmer() -> Callable[[str], str]:
    stem: Callable[[str], str] = snowballstemmer.stemmer("porter").stemWord
    return stem


@cache
def _stem(word: str) -> str:
    return _stemmer()(word)


def _tiled(words: Sequence[str], wanted: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Pair as many words as can be, by greedy string tiling: the longest common run first."""
    heap = _runs(words, wanted)
    heapq.heapify(heap)
    taken, given = set[int](), set[int]()
    while heap:
        negative, i, j = heapq.heappop(heap)
        free = [k for k in range(-negative) if i + k not in taken and j + k not in given]
        if len(free) == -negative:
            taken.update(range(i, i - negative))
            given.update(range(j, j - negative))
            yield from ((i + k, j + k) for k in free)
        else:
            for start, length in _stretches(free):
                heapq.heappush(heap, (-length, i + start, j + start))


def _runs(words: Sequence[str], wanted: Sequence[str]) -> list[tuple[int, int, int]]:
    """Every common run that cannot be longer: (-length, where in words, where in wanted)."""
    found = []
    row = [0] * (len(wanted) + 1)
    for i in reversed(range(len(words))):
        below, row = row, [0] * (len(wanted) + 1)
        for j, aim in enumerate(wanted):
            if words[i] == aim:
                row[j] = below[j + 1] + 1
                if not (i and j and words[i - 1] == wanted[j - 1]):
                    found.append((-row[j], i, j))
    return found


def _stretches(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Give (start, length) of each stretch of numbers that follow one another."""
    start = 0
    for index in range(1, len(numbers) + 1):
        if index == len(numbers) or numbers[index] != numbers[index - 1] + 1:
            yield numbers[start], index - start
            start = index


def _last_to_last(words: Sequence[str], wanted: Sequence[str]) -> Pairs:
    """Pair words as NLTK does: each with the last that is left, as they are and then by stem."""
    pairs: Pairs = []
    left, aims = list(range(len(words))), list(range(len(wanted)))
    for said, truth in ((words, wanted), (_stems(words), _stems(wanted))):
        for i in reversed(left):
            j = next((j for j in reversed(aims) if said[i] == truth[j]), None)
            if j is not None:
                aims.remove(j)
                pairs.append((i, j))
        left = [i for i in left if i not in {pair[0] for pair in pairs}]
    return pairs
