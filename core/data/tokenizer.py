"""Tokens: the only file that imports SentencePiece.

Piece 0 is CTC's blank, piece 1 is whatever the training text never showed.
"""

import hashlib
import io
import logging
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import sentencepiece
from lhotse.cut import Cut
from sentencepiece.sentencepiece_model_pb2 import (  # type: ignore[attr-defined]
    ModelProto,
    TrainerSpec,
)

from core.config.trial import CorpusConfig
from core.data.audio_decoding import CorpusError
from core.files import atomic_write
from core.outside_files import LARGEST_MODEL_OF_TOKENS, read_bytes

BLANK = 0
_UNKNOWN = 1  # of tokenizers that are learned here; others have it anywhere: `Tokenizer.unknown`
WORD_START = "\u2581"
"""SentencePiece's space: the pieces ▁a and b are the text `ab`."""
FILE_NAME = "tokenizer.model"

PieceKind = Literal["unigram", "bpe", "word", "char"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pieces:
    """The pieces of a tokenizer and its rules, as another program needs them to tokenize alike."""

    kind: PieceKind
    symbols: tuple[str, ...]
    """Of each id, the blank's first."""
    scores: tuple[float, ...]
    """How soon a piece is merged, or its log-probability."""
    unknown: int
    special: frozenset[int]
    """Ids that no text holds and that say nothing, the blank's among them."""
    has_bytes: bool
    """Whether what is unknown is spelled in bytes."""
    charsmap: bytes
    """How characters are normalised, as SentencePiece compiles it."""
    is_prefixed: bool
    """Whether a text begins with a space of its own."""
    is_squeezed: bool
    """Whether spaces in a row are one."""


def transcript(cut: Cut) -> str:
    """Returns the transcript of an utterance, one space between two words."""
    return " ".join(word for spoken in cut.supervisions for word in (spoken.text or "").split())


class Tokenizer:
    """Text to pieces and back."""

    def __init__(self, model: bytes) -> None:
        """Read a SentencePiece model from its bytes.

        Raises:
            RuntimeError: if SentencePiece cannot read it, or it is empty.
        """
        if not model:  # SentencePiece takes nothing for none given, and knows no piece then
            raise RuntimeError("a SentencePiece model must have bytes, but is empty instead")
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    @classmethod
    def train(cls, texts: Iterable[str], config: CorpusConfig, folder: Path) -> "Tokenizer":
        """Learn at most `config.vocabulary` pieces and leave them in `folder`.

        Equal texts give equal pieces. A text too small for the vocabulary gives fewer.

        Raises:
            CorpusError: if there is no text, or it has more characters than there may be pieces.
        """
        texts = list(texts)
        if not any(text.strip() for text in texts):
            raise CorpusError("The training text must have words, but is empty instead.")
        tokenizer = cls(_learn(texts, config))
        tokenizer.save(folder / FILE_NAME)
        num_unknown = sum(tokenizer.unknown in tokenizer.encode(text) for text in texts)
        if num_unknown:
            log.warning(
                "%d of %d training transcripts hold a %s outside the %d pieces of"
                " `corpus.vocabulary`; it can never be recognized.",
                *(num_unknown, len(texts), "word" if config.tokens == "word" else "character"),
                tokenizer.size,
            )
        return tokenizer

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read a tokenizer from its file, or from the folder that holds it.

        Raises:
            CorpusError: if the file is missing or damaged.
        """
        file = path / FILE_NAME if path.is_dir() else path
        try:
            return cls(read_bytes(file, largest=LARGEST_MODEL_OF_TOKENS))
        except (OSError, RuntimeError, ValueError) as error:
            reason = "is missing" if isinstance(error, FileNotFoundError) else "is damaged"
            raise CorpusError(
                f"`{file}` must be a SentencePiece model, but {reason} instead."
            ) from error

    @classmethod
    def with_blank(cls, model: bytes) -> "Tokenizer":
        """Another recognizer's SentencePiece model, every id one further: 0 becomes the blank.

        Raises:
            CorpusError: if it is none, or damaged.
        """
        try:
            cls(model)  # says more than the proto does
            proto = ModelProto.FromString(model)
        except Exception as error:  # noqa: BLE001  # of protobuf, too: they share no class
            reason = " ".join(str(error).split())[:200]
            raise CorpusError(f"Tokens must be a SentencePiece model, but: {reason}") from None
        # Copies: `_of` empties the list that these are parts of.
        pieces = [ModelProto.SentencePiece.FromString(p.SerializeToString()) for p in proto.pieces]
        return cls._of(proto, pieces)

    @classmethod
    def of_pieces(
        cls,
        pieces: Sequence[str],
        scores: Sequence[float],
        *,
        unknown: str,
        is_bpe: bool,
        special: AbstractSet[str] = frozenset(),
        charsmap: bytes = b"",
    ) -> "Tokenizer":
        """Makes a tokenizer of pieces in the order of their ids; the blank is put first.

        Args:
            pieces: symbols, U+2581 for a space.
            scores: how soon a piece is merged, or its log-probability.
            unknown: the piece of what has no other.
            is_bpe: whether pieces are merged pair by pair, or chosen as a whole.
            special: pieces that no text holds.
            charsmap: how characters are normalised, as SentencePiece compiles it.

        Raises:
            CorpusError: if SentencePiece refuses them.
        """
        proto, kinds = ModelProto(), ModelProto.SentencePiece
        proto.trainer_spec.model_type = TrainerSpec.BPE if is_bpe else TrainerSpec.UNIGRAM
        proto.trainer_spec.unk_piece = unknown
        proto.normalizer_spec.precompiled_charsmap = charsmap
        # The later entry wins: the unknown piece is of its own kind, even if it is listed as
        # special.
        kind = dict.fromkeys(special, kinds.CONTROL) | {unknown: kinds.UNKNOWN}
        listed = [
            kinds(piece=piece, score=score, type=kind.get(piece, kinds.NORMAL))
            for piece, score in zip(pieces, scores, strict=True)
        ]
        return cls._of(proto, listed)

    @classmethod
    def _of(cls, proto: ModelProto, pieces: list[ModelProto.SentencePiece]) -> "Tokenizer":
        taken = {piece.piece for piece in pieces}
        # SentencePiece refuses two pieces of one name.
        name = next(name for name in ("<blk>", "<ctc_blank>", "<|blank|>") if name not in taken)
        del proto.pieces[:]
        proto.pieces.add(piece=name, type=ModelProto.SentencePiece.CONTROL)
        proto.pieces.extend(pieces)
        spec = proto.trainer_spec
        spec.pad_id, spec.pad_piece, spec.vocab_size = BLANK, name, len(proto.pieces)
        # -1 stands for no such piece and does not move: ids (0, 1, -1) become (1, 2, -1).
        for field in ("unk_id", "bos_id", "eos_id"):
            before = getattr(spec, field)
            setattr(spec, field, before + 1 if before >= 0 else before)
        try:
            # Equal pieces must give equal bytes: the digest of a tokenizer is part of its features'
            # name.
            return cls(proto.SerializeToString(deterministic=True))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise CorpusError(f"Tokens must make a SentencePiece model, but: {reason}") from None

    def without_blank(self) -> bytes:
        """The SentencePiece model of which `with_blank` makes this one."""
        proto = ModelProto.FromString(self.model)
        del proto.pieces[BLANK]
        spec = proto.trainer_spec
        # -1: no piece pads any more.
        spec.vocab_size, spec.pad_id = len(proto.pieces), -1
        for field in ("unk_id", "bos_id", "eos_id"):
            before = getattr(spec, field)
            setattr(spec, field, before - 1 if before > BLANK else -1)
        return proto.SerializeToString(deterministic=True)

    def describe_pieces(self) -> Pieces:
        """Returns all that another program needs to tokenize alike."""
        proto, kinds = ModelProto.FromString(self.model), ModelProto.SentencePiece
        types = [piece.type for piece in proto.pieces]
        names: dict[int, PieceKind] = {
            TrainerSpec.UNIGRAM: "unigram",
            TrainerSpec.BPE: "bpe",
            TrainerSpec.WORD: "word",
            TrainerSpec.CHAR: "char",
        }
        return Pieces(
            kind=names[proto.trainer_spec.model_type],
            symbols=tuple(piece.piece for piece in proto.pieces),
            scores=tuple(piece.score for piece in proto.pieces),
            unknown=self.unknown,
            special=frozenset({BLANK} | {i for i, t in enumerate(types) if t == kinds.CONTROL}),
            has_bytes=kinds.BYTE in types,
            charsmap=proto.normalizer_spec.precompiled_charsmap,
            is_prefixed=proto.normalizer_spec.add_dummy_prefix,
            is_squeezed=proto.normalizer_spec.remove_extra_whitespaces,
        )

    def save(self, file: Path) -> None:
        atomic_write(file, self.model)

    @property
    def size(self) -> int:
        """Pieces, blank and unknown included."""
        return int(self._processor.get_piece_size())

    @property
    def unknown(self) -> int:
        """Id of the piece that stands for what has no other; of an imported model, any id."""
        return int(self._processor.unk_id())

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.model).hexdigest()

    @property
    def pieces(self) -> list[str]:
        """Each id's symbol; U+2581 starts a word."""
        return [str(self._processor.id_to_piece(i)) for i in range(self.size)]

    def with_words(self, texts: Iterable[str]) -> "Tokenizer":
        """The same pieces, and after them those without which these texts cannot be spelled.

        They are whole words where the pieces are, and single characters elsewhere, so that what
        could be spelled before is spelled as before.
        """
        proto = ModelProto.FromString(self.model)
        is_of_words = proto.trainer_spec.model_type == TrainerSpec.WORD
        words = {word for text in texts for word in text.split()}
        # A tokenizer of words knows a new word only as a whole; one of pieces spells it by letters.
        parts = words if is_of_words else set("".join(words))
        misspelled = {part for part in parts if self.unknown in self.encode(part)}
        if is_of_words:
            return self.with_pieces(f"{WORD_START}{word}" for word in misspelled)
        # Of ▁a and b, the word `b` is ▁ and b: b is there, and what lacks is the ▁ alone.
        spelled = self.with_pieces(misspelled - set(self.pieces))
        lacks_start = any(spelled.unknown in spelled.encode(word) for word in words)
        return spelled.with_pieces({WORD_START}) if lacks_start else spelled

    def with_pieces(self, symbols: Iterable[str]) -> "Tokenizer":
        """The same pieces, and after them new ones, which are used only where no other can be."""
        proto = ModelProto.FromString(self.model)
        lowest = min(piece.score for piece in proto.pieces)
        # Sorted, as the order of a set of strings differs from process to process, and ids with it.
        for symbol in sorted(symbols):
            proto.pieces.add(piece=symbol, score=lowest)
        if len(proto.pieces) == self.size:
            return self
        proto.trainer_spec.vocab_size = len(proto.pieces)
        return Tokenizer(proto.SerializeToString(deterministic=True))

    def encode(self, text: str) -> list[int]:
        return [int(i) for i in self._processor.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Join pieces to words, one space between two; blanks say nothing."""
        spoken = [i for i in ids if i != BLANK]
        return " ".join(str(self._processor.decode(spoken)).split())


def _learn(texts: list[str], config: CorpusConfig) -> bytes:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type=config.tokens,
            vocab_size=config.vocabulary,
            # Without this a text that gives fewer pieces than `vocabulary` would be an error.
            hard_vocab_limit=False,
            pad_id=BLANK,
            pad_piece="<blk>",
            unk_id=_UNKNOWN,
            bos_id=-1,
            eos_id=-1,
            # WER compares with the transcript as written: no character is folded or dropped.
            normalization_rule_name="identity",
            character_coverage=1.0,
            # In bytes. By default SentencePiece skips what is longer than 4192.
            max_sentence_length=1 << 20,
            num_threads=1,  # sums in threads would depend on their order
            minloglevel=2,
        )
    except RuntimeError as error:
        num_characters = len(set("".join(texts)) - {" "})
        raise CorpusError(
            f"`corpus.vocabulary` must be at least {num_characters + 3} for {config.tokens} tokens"
            f" of this text ({num_characters} characters, word boundary, blank, unknown),"
            f" but is {config.vocabulary} instead."
        ) from error
    return model.getvalue()
