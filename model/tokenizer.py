"""Text to token ids and back, as the released checkpoints were trained.

Knows the sentencepiece model and the added tokens of a checkpoint's folder. The ids are those of
the slow Llama tokenizer with ``legacy=False``: text after an added token gets no space of its own
in front.
"""

import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from .errors import ModelError

IMAGE, BOX_START, BOX_END, SEG = "<im_patch>", "<bx_start>", "<bx_end>", "[SEG]"
ADDED = (IMAGE, BOX_START, BOX_END, SEG)
UNKNOWN = "<unk>"


@dataclass(frozen=True)
class Tokenizer:
    """The words of one checkpoint: sentencepiece's, and those that were added to them."""

    model: bytes
    added: Mapping[str, int]

    def __len__(self) -> int:
        return max([self.pieces, *(each + 1 for each in self.added.values())])

    @property
    def pieces(self) -> int:
        """How many words are sentencepiece's own; the added ones come after them."""
        return int(self._pieces.get_piece_size())

    @property
    def bos_id(self) -> int:
        """The token that begins every prompt."""
        return int(self._pieces.bos_id())

    def encode(self, text: str) -> list[int]:
        """Turn text into ids, without BOS; added tokens in it become their ids."""
        ids: list[int] = []
        for part in self._splitter.split(text):
            ids.extend([self.added[part]] if part in self.added else self._encode(part))
        return ids

    def encode_within(self, text: str) -> list[int]:
        """Turn words into the ids they have within a sentence, where a space is before them."""
        before = "a"
        return self.encode(f"{before} {text}")[len(self.encode(before)) :]

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids into text.

        Added tokens stay as they are written; control tokens such as BOS and EOS vanish, and so do
        ids without a word, which a padded vocabulary has.
        """
        names = {number: name for name, number in self.added.items()}
        text, run = "", list[int]()
        for each in ids:
            if each in names:
                text, run = text + self._decode(run) + names[each], []
            elif each < self.pieces and not self._pieces.is_control(each):
                run.append(each)
        return text + self._decode(run)

    def reserved(self, text: str) -> list[str]:
        """Find the tokens in a text that only the program may write."""
        controls = ("<s>", "</s>", UNKNOWN, *self.added)
        return [each for each in controls if each in text]

    @cached_property
    def _pieces(self) -> sentencepiece.SentencePieceProcessor:
        proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
        proto.ParseFromString(self.model)
        proto.normalizer_spec.add_dummy_prefix = False
        processor = sentencepiece.SentencePieceProcessor()
        processor.LoadFromSerializedProto(proto.SerializeToString())
        return processor

    @cached_property
    def _splitter(self) -> re.Pattern[str]:
        longest_first = sorted(self.added, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def _encode(self, text: str) -> list[int]:
        if not text.startswith((" ", "\u2581")):
            return list(self._pieces.encode(text))
        # Some models drop leading spaces; behind another word they stay.
        shield = len(self._pieces.encode(UNKNOWN))
        return list(self._pieces.encode(UNKNOWN + text))[shield:]

    def _decode(self, ids: list[int]) -> str:
        return str(self._pieces.decode(ids)) if ids else ""


def learn(sentences: Iterable[str], *, pieces: int, whole: Iterable[str] = ()) -> Tokenizer:
    """Learn words from text, as the sentencepiece models of Llama and Phi-3 were learnt.

    Parameters
    ----------
    pieces
        At most so many; the tokens of M3D come after them.
    whole
        What is always one piece.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=pieces,
        user_defined_symbols=list(whole),
        model_type="bpe",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        byte_fallback=True,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    learnt = Tokenizer(model.getvalue(), {})
    return replace(learnt, added={name: learnt.pieces + i for i, name in enumerate(ADDED)})


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read ``tokenizer.model`` and the added tokens beside it.

    Raises
    ------
    ModelError
        A file is missing or is not what its name says, or a token of M3D is missing.
    """
    path, added = folder / "tokenizer.model", _added(folder / "added_tokens.json")
    try:
        tokenizer = Tokenizer(path.read_bytes(), added)
        pieces = tokenizer.pieces
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # sentencepiece and protobuf raise classes of their own
        raise ModelError(f"{path} is no sentencepiece model: {error}") from error
    for name in ADDED:
        if added[name] < pieces:
            raise ModelError(
                f"{folder / 'added_tokens.json'}: {name} is {added[name]}, "
                f"but {path.name} has pieces up to {pieces - 1}"
            )
    return tokenizer


def _added(path: Path) -> dict[str, int]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        added = {str(name): int(number) for name, number in content.items()}
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, AttributeError, TypeError) as error:
        raise ModelError(f"{path} is no table of tokens: {error}") from error
    missing = [each for each in ADDED if each not in added]
    if missing:
        raise ModelError(f"{path}: expected {', '.join(missing)}, not there")
    if len(set(added.values())) < len(added):
        raise ModelError(f"{path}: expected each token once, got one id for two of them")
    return added
