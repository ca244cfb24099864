"""An n-gram model of words in ARPA format that scores hypotheses of tokens, by KenLM.

KenLM is part of flashlight-text, which the extra `lm` installs.
"""

import functools
import importlib.util
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from core.data.tokenizer import WORD_START, Tokenizer
from core.decoders.ctc import BLANK

BEGIN, END, UNSEEN = "<s>", "</s>", "<unk>"
_LEAST = -10.0
"""Lowest log10 probability of a word: a model without `<unk>` would exclude unknown words."""
_MOST_CACHED = 200_000
"""Scores of the language model in memory."""


class LmError(ValueError):
    """A language model cannot be read or used, or its packages are not installed."""


def needs_extra() -> None:
    """Check that the package of the extra `lm` is installed.

    Raises:
        LmError: with the command that installs it.
    """
    if importlib.util.find_spec("flashlight") is None:
        raise LmError(
            "A beam search must have the package `flashlight-text`, but it is not installed;"
            ' `pip install "conformer-sweep[lm]"` installs it (on Python 3.11 and 3.12).'
        )


class NGram:
    """Probabilities of words after others, from an ARPA file."""

    def __init__(self, file: Path) -> None:
        """Read it.

        Raises:
            LmError: if it is missing, or not in ARPA format.
        """
        needs_extra()
        from flashlight.lib.text.decoder.kenlm import KenLM  # noqa: PLC0415  # an extra
        from flashlight.lib.text.dictionary import Dictionary  # noqa: PLC0415

        self.file = file
        self.order, words = _read_words(file)
        self.words = frozenset(words) - {BEGIN, END, UNSEEN}
        self._dictionary = Dictionary([*sorted(self.words | {BEGIN, END}), UNSEEN])
        self._unseen = self._dictionary.get_index(UNSEEN)
        try:
            with _quiet():
                self._model = KenLM(str(file.resolve()), self._dictionary)
        except Exception as error:  # noqa: BLE001  # KenLM's errors share no other class
            reason = " ".join(str(error).split()).rpartition("Exception. ")[2]
            raise _arpa_error(file, reason[-200:]) from None
        self.score = functools.lru_cache(_MOST_CACHED)(self._score)

    def check_spelling(self, tokenizer: Tokenizer) -> None:
        """Check that the recognizer's tokens can spell its words.

        Raises:
            LmError: if they can spell none.
        """
        if all(tokenizer.unknown in tokenizer.encode(word) for word in self.words):
            example = min(self.words, default="")
            raise LmError(
                f"`{self.file}` must have words that the model's tokens can spell, but has none"
                f" (`{example}` is one of its own); are they in another case or alphabet?"
            )

    def _score(self, before: tuple[str, ...], word: str) -> float:
        """Return the natural logarithm of a word's probability after the last words before it."""
        # Not for order 1: `before[-0:]` is all of `before`.
        history = before[-(self.order - 1) :] if self.order > 1 else ()
        is_begin = bool(history) and history[0] == BEGIN
        # `start` takes whether to start with nothing, so its argument is False where the history
        # begins with <s>, which is then not scored again.
        state = self._model.start(not is_begin)
        for earlier in history[is_begin:]:
            state, _ = self._model.score(state, self._index(earlier))
        _, log10 = self._model.score(state, self._index(word))
        # KenLM's logarithms have base 10, the recognizer's base e: -2 becomes -4.6.
        return float(max(log10, _LEAST) * math.log(10))

    def _index(self, word: str) -> int:
        is_in_model = word in self.words or word == END
        return int(self._dictionary.get_index(word)) if is_in_model else self._unseen


@dataclass(frozen=True, kw_only=True, slots=True)
class _Spelled:
    """The last words of a hypothesis, and the one that is being spelled."""

    before: tuple[str, ...]
    word: str
    is_scored: bool = False
    """Whether the word was already scored as unknown."""


class SpelledWords:
    """A word language model for flashlight's decoder, which extends hypotheses token by token."""

    def __init__(
        self, pieces: Sequence[str], ngram: NGram | None, *, weight: float, word_score: float
    ) -> None:
        self._pieces, self._ngram = pieces, ngram
        self._weight, self._word_score = weight, word_score
        # Words of history that a score can depend on: 2 for a trigram model.
        self._most = 1 if ngram is None else max(1, ngram.order - 1)
        words = ngram.words if ngram else frozenset[str]()
        # "it" gives "", "i" and "it".
        self._beginnings = {word[:end] for word in words for end in range(len(word) + 1)}
        self.lm = _flashlight_model(self)
        self.reset()

    @classmethod
    def read(
        cls, tokenizer: Tokenizer, lm: Any, *, weight: float, word_score: float
    ) -> "SpelledWords":
        """Read the language model, if there is one.

        Args:
            tokenizer: of the recognizer.
            lm: an ARPA file of words, or None.
            weight: of its log-probabilities relative to the recognizer's.
            word_score: added for each word, in nats.

        Raises:
            LmError: if flashlight-text is not installed, the file is not in ARPA format, or the
                tokens can spell none of its words.
        """
        needs_extra()
        ngram = None if lm is None else NGram(lm)
        if ngram is not None:
            ngram.check_spelling(tokenizer)
        return cls(tokenizer.pieces, ngram, weight=weight, word_score=word_score)

    def reset(self) -> None:
        """Start with an empty hypothesis."""
        self.start = _Spelled(before=(BEGIN,), word="")

    def continue_after(self, path: Int[Tensor, " frames"]) -> None:
        """Let the next hypotheses continue this path."""
        if self._ngram is None:
            return
        # Repeats merge across the frames of a stretch, as in CTC.
        for token in path.unique_consecutive().tolist():
            if token != BLANK:
                self.start, _ = self.after(self.start, token)

    def after(self, spelled: _Spelled, token: int) -> tuple[_Spelled, float]:
        """Extend a hypothesis by a token; return it with the score that this adds.

        A word is scored when the next one begins, or as soon as no known word begins with what is
        spelled so far. Example, where the model knows "turn" and "it", and `_` marks the start of a
        word:

            token   words before   word     score added
            _tur    <s>            tur      word_score
            n       <s>            turn     0
            _it     <s> turn       it       weight * log P(turn | <s>) + word_score
            ch      <s> turn       itch     weight * log P(<unk> | <s> turn)
        """
        piece = self._pieces[token]
        if piece.startswith(WORD_START):
            before, score = self._finish_word(spelled)
            spelled, piece = _Spelled(before=before, word=""), piece.removeprefix(WORD_START)
            score += self._word_score
        else:
            score = 0.0
        word = spelled.word + piece
        if self._ngram is None:  # without a language model no two hypotheses may be merged
            return _Spelled(before=spelled.before, word=word), score
        is_unknown = word not in self._beginnings and not spelled.is_scored
        if is_unknown:
            score += self._weight * self._ngram.score(spelled.before, UNSEEN)
        is_scored = spelled.is_scored or is_unknown
        return _Spelled(before=spelled.before, word=word, is_scored=is_scored), score

    def final_score(self, spelled: _Spelled) -> float:
        """Return the score of the last word, at the end of a stretch."""
        return self._finish_word(spelled)[1]

    def _finish_word(self, spelled: _Spelled) -> tuple[tuple[str, ...], float]:
        """Return the words before the next one, and the score of the last of them."""
        if not spelled.word:
            return spelled.before, 0.0
        if self._ngram is None:
            return (*spelled.before, spelled.word), 0.0
        word = spelled.word if spelled.word in self._ngram.words else UNSEEN
        before = (*spelled.before, word)[-self._most :]
        if spelled.is_scored:
            return before, 0.0
        return before, self._weight * self._ngram.score(spelled.before, word)


def _flashlight_model(words: SpelledWords) -> Any:
    """Return the object that flashlight's decoders call; hypotheses of equal state are merged."""
    from flashlight.lib.text.decoder import LM, LMState  # noqa: PLC0415  # an extra

    class Model(LM):  # type: ignore[misc]  # a class of C++
        def __init__(self) -> None:
            super().__init__()
            self.states: dict[_Spelled, LMState] = {}
            self.spelled: dict[LMState, _Spelled] = {}
            self.scores: dict[tuple[LMState, int], tuple[LMState, float]] = {}

        def start(self, start_with_nothing: bool) -> LMState:  # noqa: ARG002, FBT001
            self.states.clear()
            self.spelled.clear()
            self.scores.clear()
            return self.state(words.start)

        def score(self, state: LMState, token: int) -> tuple[LMState, float]:
            result = self.scores.get((state, token))  # the same call comes frame after frame
            if result is None:
                spelled, score = words.after(self.spelled[state], token)
                result = self.scores[state, token] = self.state(spelled), score
            return result

        def finish(self, state: LMState) -> tuple[LMState, float]:
            return state, words.final_score(self.spelled[state])

        def state(self, spelled: _Spelled) -> LMState:
            """Return one object for all equal hypotheses: flashlight compares them by identity."""
            if spelled not in self.states:
                state = LMState()
                self.states[spelled], self.spelled[state] = state, spelled
            return self.states[spelled]

    return Model()


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress bar that KenLM writes to file descriptor 2."""
    with tempfile.TemporaryFile() as nowhere:
        stderr = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _read_words(file: Path) -> tuple[int, list[str]]:
    """Return the model's order, and the words of its unigrams."""
    try:
        with file.open(encoding="utf-8") as lines:
            return _parse(lines)
    except FileNotFoundError:
        raise LmError(
            f"`{file}` must be a language model in ARPA format, but is missing instead."
        ) from None
    except (UnicodeDecodeError, ValueError, IndexError) as error:
        raise _arpa_error(file, " ".join(str(error).split())[:200]) from None


def _parse(lines: Iterable[str]) -> tuple[int, list[str]]:
    order, words, is_inside, is_begun = 0, list[str](), False, False
    for line in map(str.strip, lines):
        # KenLM looks at the first bytes, and would map a file that looks like its binary format.
        is_begun = is_begun or line == "\\data\\"
        if line and not is_begun:
            raise ValueError("its first line is not \\data\\")
        if line.startswith("\\2-grams:") or line == "\\end\\":
            break
        if line.startswith("ngram "):
            # "ngram 3=1204" counts 1,204 trigrams.
            order = max(order, int(line.split()[1].split("=")[0]))
        elif line == "\\1-grams:":
            is_inside = True
        elif is_inside and line:
            # A unigram is "-2.34 turn -0.30": its logarithm, the word and a back-off weight.
            words.append(line.split()[1])
    if not order or not words:
        raise ValueError("no unigrams")
    return order, words


def _arpa_error(file: Path, reason: str) -> LmError:
    return LmError(
        f"`{file}` must be a language model in ARPA format, but is not ({reason});"
        " KenLM's binary files do not name their words."
    )
