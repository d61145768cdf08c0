"""A small sentencepiece model of an exact size, made as those of Llama and Phi-3 were."""

import io
from functools import cache

import sentencepiece

from model import tiny
from model.tokenizer import ADDED, Tokenizer


@cache
def pieces(count: int, whole: tuple[str, ...] = ()) -> bytes:
    """Give a model of `count` pieces; what is in `whole` stays one piece."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tiny.sentences()),
        model_writer=model,
        vocab_size=count,
        model_type="bpe",
        user_defined_symbols=list(whole),
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def tokenizer(vocabulary: int, whole: tuple[str, ...] = ()) -> Tokenizer:
    """Words for a vocabulary whose last four are M3D's own."""
    first = vocabulary - len(ADDED)
    return Tokenizer(
        pieces(first, whole), {name: first + index for index, name in enumerate(ADDED)}
    )
