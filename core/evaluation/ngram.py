"""An n-gram model of words in ARPA format, asked about hypotheses of tokens: KenLM is at home here.

KenLM is that of flashlight-text, which comes with the extra `lm`.
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

from core.data.tokenizer import UNKNOWN, Tokenizer
from core.evaluation.greedy import BLANK
from core.evaluation.word_alignment import WORD_START

BEGIN, END, UNSEEN = "<s>", "</s>", "<unk>"
_LEAST = -10.0
"""Of an unseen word, log10: what a model without `<unk>` says would forbid it."""
_MOST_REMEMBERED = 200_000
"""Answers of the language model."""


class LmError(ValueError):
    """A language model that cannot be used, or the lack of what would read it."""


def needs_extra() -> None:
    """Check that the package of the extra `lm` is there.

    Raises:
        LmError: saying what installs it.
    """
    if importlib.util.find_spec("flashlight") is None:
        raise LmError(
            "A beam search must have the package `flashlight-text`, but it is not installed;"
            ' `pip install "conformer-sweep[lm]"` installs it (on Python 3.11 and 3.12).'
        )


class NGram:
    """What a file says of a word after others."""

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
        except Exception as error:  # noqa: BLE001  # KenLM's own, which share no other class
            reason = " ".join(str(error).split()).rpartition("Exception. ")[2]
            raise _no_arpa(file, reason[-200:]) from None
        self.score = functools.lru_cache(_MOST_REMEMBERED)(self._score)

    def check_spelling(self, tokenizer: Tokenizer) -> None:
        """See that the recogniser can say its words.

        Raises:
            LmError: if it can say none.
        """
        if all(UNKNOWN in tokenizer.encode(word) for word in self.words):
            example = min(self.words, default="")
            raise LmError(
                f"`{self.file}` must have words that the model's tokens can spell, but has none"
                f" (`{example}` is one of its own); are they in another case or alphabet?"
            )

    def _score(self, before: tuple[str, ...], word: str) -> float:
        """Natural logarithm of a word's probability after others, of which the last count."""
        known = before[-(self.order - 1) :] if self.order > 1 else ()
        is_begin = bool(known) and known[0] == BEGIN
        state = self._model.start(not is_begin)
        for each in known[is_begin:]:
            state, _ = self._model.score(state, self._index(each))
        _, found = self._model.score(state, self._index(word))
        return float(max(found, _LEAST) * math.log(10))

    def _index(self, word: str) -> int:
        is_known = word in self.words or word == END
        return int(self._dictionary.get_index(word)) if is_known else self._unseen


@dataclass(frozen=True, kw_only=True, slots=True)
class _Spelled:
    """Words of a hypothesis, and the one that is being spelled."""

    before: tuple[str, ...]
    word: str
    is_paid: bool = False
    """Whether the word is known to be unseen, and was scored so."""


class SpelledWords:
    """A language model as flashlight asks for one: of tokens, in which words are scored."""

    def __init__(
        self, pieces: Sequence[str], ngram: NGram | None, *, weight: float, word_score: float
    ) -> None:
        self._pieces, self._ngram = pieces, ngram
        self._weight, self._word_score = weight, word_score
        self._most = 1 if ngram is None else max(1, ngram.order - 1)
        words = ngram.words if ngram else frozenset[str]()
        self._beginnings = {word[:end] for word in words for end in range(len(word) + 1)}
        self.lm = _flashlight_model(self)
        self.forget()

    def forget(self) -> None:
        """Nothing was said yet."""
        self.start = _Spelled(before=(BEGIN,), word="")

    def go_on_after(self, path: Int[Tensor, " frames"]) -> None:
        """What follows is said after this path."""
        if self._ngram is None:
            return
        for token in path.unique_consecutive().tolist():
            if token != BLANK:
                self.start, _ = self.after(self.start, token)

    def after(self, spelled: _Spelled, token: int) -> tuple[_Spelled, float]:
        """What a further token makes of a hypothesis, and what that scores."""
        piece = self._pieces[token]
        if piece.startswith(WORD_START):
            before, score = self._said(spelled)
            spelled, piece = _Spelled(before=before, word=""), piece.removeprefix(WORD_START)
            score += self._word_score
        else:
            score = 0.0
        word = spelled.word + piece
        if self._ngram is None:  # no two hypotheses are one: all that was said counts
            return _Spelled(before=spelled.before, word=word), score
        is_lost = word not in self._beginnings and not spelled.is_paid
        if is_lost:
            score += self._weight * self._ngram.score(spelled.before, UNSEEN)
        is_paid = spelled.is_paid or is_lost
        return _Spelled(before=spelled.before, word=word, is_paid=is_paid), score

    def finished(self, spelled: _Spelled) -> float:
        """What the end of the stretch scores: its last word."""
        return self._said(spelled)[1]

    def _said(self, spelled: _Spelled) -> tuple[tuple[str, ...], float]:
        """The words before the next one, and the score of the last."""
        if not spelled.word:
            return spelled.before, 0.0
        if self._ngram is None:
            return (*spelled.before, spelled.word), 0.0
        word = spelled.word if spelled.word in self._ngram.words else UNSEEN
        before = (*spelled.before, word)[-self._most :]
        if spelled.is_paid:
            return before, 0.0
        return before, self._weight * self._ngram.score(spelled.before, word)


def _flashlight_model(words: SpelledWords) -> Any:
    """The object that flashlight's decoders ask; hypotheses of equal state are merged."""
    from flashlight.lib.text.decoder import LM, LMState  # noqa: PLC0415  # an extra

    class Model(LM):  # type: ignore[misc]  # a class of C++
        def __init__(self) -> None:
            super().__init__()
            self.states: dict[_Spelled, LMState] = {}
            self.spelled: dict[LMState, _Spelled] = {}
            self.known: dict[tuple[LMState, int], tuple[LMState, float]] = {}

        def start(self, start_with_nothing: bool) -> LMState:  # noqa: ARG002, FBT001
            self.states.clear()
            self.spelled.clear()
            self.known.clear()
            return self.state(words.start)

        def score(self, state: LMState, token: int) -> tuple[LMState, float]:
            found = self.known.get((state, token))  # the same is asked frame after frame
            if found is None:
                spelled, score = words.after(self.spelled[state], token)
                found = self.known[state, token] = self.state(spelled), score
            return found

        def finish(self, state: LMState) -> tuple[LMState, float]:
            return state, words.finished(self.spelled[state])

        def state(self, spelled: _Spelled) -> LMState:
            """One object for all equal hypotheses: they are compared by identity."""
            if spelled not in self.states:
                found = LMState()
                self.states[spelled], self.spelled[found] = found, spelled
            return self.states[spelled]

    return Model()


@contextmanager
def _quiet() -> Iterator[None]:
    """KenLM draws a bar on the process's standard error, past Python's."""
    with tempfile.TemporaryFile() as nowhere:
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _read_words(file: Path) -> tuple[int, list[str]]:
    """The model's order, and the words of its unigrams."""
    try:
        with file.open(encoding="utf-8") as lines:
            return _parse(lines)
    except FileNotFoundError:
        raise LmError(
            f"`{file}` must be a language model in ARPA format, but is missing instead."
        ) from None
    except (UnicodeDecodeError, ValueError, IndexError) as error:
        raise _no_arpa(file, " ".join(str(error).split())[:200]) from None


def _parse(lines: Iterable[str]) -> tuple[int, list[str]]:
    order, words, is_inside, is_begun = 0, list[str](), False, False
    for line in map(str.strip, lines):
        # KenLM goes by the first bytes, and maps what looks like its own binary format.
        is_begun = is_begun or line == "\\data\\"
        if line and not is_begun:
            raise ValueError("its first line is not \\data\\")
        if line.startswith("\\2-grams:") or line == "\\end\\":
            break
        if line.startswith("ngram "):
            order = max(order, int(line.split()[1].split("=")[0]))
        elif line == "\\1-grams:":
            is_inside = True
        elif is_inside and line:
            words.append(line.split()[1])
    if not order or not words:
        raise ValueError("no unigrams")
    return order, words


def _no_arpa(file: Path, reason: str) -> LmError:
    return LmError(
        f"`{file}` must be a language model in ARPA format, but is not ({reason});"
        " KenLM's binary files do not name their words."
    )
