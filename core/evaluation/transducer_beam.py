"""Beam search of a transducer, with or without an n-gram model of words.

Hypotheses go through the frames in step, and all that are at a frame are extended until they have
left it: a blank, or a token of a TDT with a duration, leads to a later frame, a token without one
stays. Two that have said the same tokens and are at the same frame are one, of the sum of their
probabilities: so a score is the probability of the tokens over all their alignments, as far as
these are in the beam. Arcs are those of the loss (core/decoders/lattice.py). The best hypothesis is
that of the highest score a token, as NeMo and icefall have it.

Shapes: T frames, D encoder width, J joint width, V vocabulary, K durations.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from core.data.tokenizer import Tokenizer
from core.decoders.ctc import BLANK
from core.decoders.greedy import MOST_SYMBOLS, Symbol
from core.decoders.predictor import State
from core.decoders.transducer import Transducer
from core.evaluation.beam import BEAM, LM_WEIGHT
from core.evaluation.ngram import SpelledWords
from core.evaluation.word_alignment import Decoder

Trail = tuple[Symbol, Any] | None
"""The last symbol of a hypothesis, and the trail before it."""


class Prefix:
    """Tokens that hypotheses have said, with what the predictor and the language model made.

    It lives as long as a hypothesis is there or at a longer one.
    """

    def __init__(self, token: int, before: State, spelled: Any, shorter: "Prefix | None") -> None:
        self.token, self.before, self.spelled, self.shorter = token, before, spelled, shorter
        self.length: int = 0 if shorter is None else shorter.length + 1
        self.predicted: Tensor | None = None
        """The joint's projection of the predictor's output, once it was needed."""
        self.after: State = ()
        self.longer: WeakValueDictionary[int, Prefix] = WeakValueDictionary()

    def extend(self, token: int, spelled: Any) -> "Prefix":
        """Return the prefix of one token more, the same one each time."""
        longer = self.longer.get(token)
        if longer is None:
            longer = self.longer[token] = Prefix(token, self.after, spelled, self)
        longer.before = self.after
        return longer

    def forget(self) -> None:
        """Let go of tensors, as no hypothesis is here; an hour of speech has thousands."""
        self.predicted, self.before, self.after = None, (), ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Hypothesis:
    """Tokens, and the frame to which they have led."""

    prefix: Prefix
    frame: int
    score: float
    """Logarithm of the probability, with what the language model adds."""
    trail: Trail = None

    def symbols(self) -> list[Symbol]:
        """Return its tokens with their frames, those of its most probable alignment."""
        symbols, trail = [], self.trail
        while trail is not None:
            symbol, trail = trail
            symbols.append(symbol)
        return symbols[::-1]


@dataclass(frozen=True, kw_only=True, slots=True)
class TransducerBeamSearch:
    """Beam search of one utterance after the other."""

    width: int = BEAM
    """Number of hypotheses."""
    words: SpelledWords | None = None
    """Scores of words; None for none."""
    most_symbols: int = MOST_SYMBOLS
    """Tokens without a duration at one frame."""

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        *,
        width: int = BEAM,
        lm: Any = None,
        lm_weight: float = LM_WEIGHT,
        word_score: float = 0.0,
    ) -> "TransducerBeamSearch":
        """Read the language model, if there is one.

        Args:
            tokenizer: of the recognizer.
            width: the number of hypotheses.
            lm: an ARPA file of words.
            lm_weight: weight of its log-probabilities relative to the recognizer's.
            word_score: added for each word, in nats.

        Raises:
            LmError: if a language model or a score is asked for and flashlight-text is not
                installed, or the file is not in ARPA format.
        """
        if lm is None and word_score == 0:
            return cls(width=width)
        words = SpelledWords.read(tokenizer, lm, weight=lm_weight, word_score=word_score)
        return cls(width=width, words=words)

    @torch.inference_mode()
    def search(
        self, transducer: Transducer, encoded: Float[Tensor, "time width"]
    ) -> list[Hypothesis]:
        """Return the hypotheses at the end, the best one first.

        Args:
            transducer: predictor and joint.
            encoded: the encoder's frames of an utterance.
        """
        frames = transducer.joint.encoder(encoded)
        spelled = None if self.words is None else self.words.start
        empty = Prefix(BLANK, transducer.predictor.start(1), spelled, None)
        waiting = [Hypothesis(prefix=empty, frame=0, score=0.0)]
        for t, frame in enumerate(frames):
            now = [hypothesis for hypothesis in waiting if hypothesis.frame == t]
            later = [hypothesis for hypothesis in waiting if hypothesis.frame > t]
            if not now:
                continue
            arcs = _Arcs(transducer, frame, remaining=len(frames) - t)
            waiting = self._best([*later, *self._leave(now, arcs)])
            for prefix in {h.prefix for h in now} - {h.prefix for h in waiting}:
                prefix.forget()
        return sorted(map(self._with_last_word, waiting), key=_score_a_token, reverse=True)

    def _leave(self, now: Sequence[Hypothesis], arcs: "_Arcs") -> list[Hypothesis]:
        """Extend hypotheses until all have left their frame."""
        beyond: list[Hypothesis] = []
        for _ in range(self.most_symbols + 1):
            extended = list(self._extended(now, arcs))
            beyond += [h for h in extended if h.frame > now[0].frame]
            now = self._best(h for h in extended if h.frame == now[0].frame)
            if not now:
                break
        return beyond

    def _extended(self, now: Sequence[Hypothesis], arcs: "_Arcs") -> Iterator[Hypothesis]:
        """Yield the most probable extensions of hypotheses at one frame, and all by a blank."""
        scores = arcs.scores([hypothesis.prefix for hypothesis in now])  # (N, V, K)
        for hypothesis, own in zip(now, scores, strict=True):
            best = own.flatten().topk(min(self.width, own.numel())).indices
            # All of the blank, too: otherwise improbable ones would keep everything at a frame.
            chosen = torch.cat((torch.arange(own.shape[1], device=best.device), best)).unique()
            token, k = chosen // own.shape[1], chosen % own.shape[1]
            of_tokens = own.logsumexp(1)[token]  # over all durations
            columns = (own.flatten()[chosen], token, k, of_tokens)
            for score, *arc in zip(*(column.tolist() for column in columns), strict=True):
                if score > -math.inf:
                    yield self._extend(hypothesis, arcs.step(hypothesis.frame, *arc), score)

    def _extend(self, hypothesis: Hypothesis, step: Symbol, score: float) -> Hypothesis:
        total, frame = hypothesis.score + score, hypothesis.frame + step.duration
        if step.token == BLANK:
            return replace(hypothesis, frame=frame, score=total)
        prefix, spelled, added = hypothesis.prefix, None, 0.0
        if self.words is not None:
            spelled, added = self.words.after(prefix.spelled, step.token)
        return Hypothesis(
            prefix=prefix.extend(step.token, spelled),
            frame=frame,
            score=total + added,
            trail=(step, hypothesis.trail),
        )

    def _best(self, hypotheses: Iterable[Hypothesis]) -> list[Hypothesis]:
        """Return the best of them; those of equal tokens at one frame are added up."""
        merged: dict[tuple[int, int], Hypothesis] = {}
        for hypothesis in hypotheses:
            key = id(hypothesis.prefix), hypothesis.frame
            other = merged.get(key)
            merged[key] = hypothesis if other is None else _sum(hypothesis, other)
        ordered = sorted(merged.values(), key=lambda hypothesis: hypothesis.score, reverse=True)
        return ordered[: self.width]

    def _with_last_word(self, hypothesis: Hypothesis) -> Hypothesis:
        if self.words is None:
            return hypothesis
        last = self.words.final_score(hypothesis.prefix.spelled)
        return replace(hypothesis, score=hypothesis.score + last)


AnyDecoder = Decoder | TransducerBeamSearch
"""Of CTC, or of a transducer; without one the search is greedy."""


class _Arcs:
    """What leaves one frame: tokens and blank with their durations."""

    def __init__(
        self, transducer: Transducer, frame: Float[Tensor, " joint"], *, remaining: int
    ) -> None:
        """Keep a frame, and how many frames remain, itself included."""
        self.predictor, self.joint = transducer.predictor, transducer.joint
        self.frame, self.remaining = frame, remaining

    def step(self, frame: int, token: int, k: int, log_probability: float) -> Symbol:
        """Return a token or a blank at a frame, with its duration of this number."""
        duration = self.durations(token)[k]
        return Symbol(token=token, frame=frame, duration=duration, log_probability=log_probability)

    def durations(self, token: int) -> tuple[int, ...]:
        """Return the durations of a token's arcs; RNN-T's blank takes a frame, its tokens none."""
        return self.joint.durations or ((1,) if token == BLANK else (0,))

    def scores(self, prefixes: Sequence[Prefix]) -> Float[Tensor, "prefixes vocabulary durations"]:
        """Return the log-probabilities of all arcs; minus infinity where one is not allowed."""
        self._predict([prefix for prefix in prefixes if prefix.predicted is None])
        predicted = torch.stack([p.predicted for p in prefixes if p.predicted is not None])
        logits, of_durations = self.joint.logits(self.frame, predicted)
        scores = logits.float().log_softmax(-1)[:, :, None]
        if self.joint.durations:
            scores = scores + of_durations.float().log_softmax(-1)[:, None]
        for rows, token in ((scores[:, :1], BLANK), (scores[:, 1:], BLANK + 1)):
            refused = [k for k, d in enumerate(self.durations(token)) if not self._leads(token, d)]
            rows[:, :, refused] = -math.inf
        return scores

    def _leads(self, token: int, duration: int) -> bool:
        """Whether an arc leads anywhere: a blank to a later frame or the end, a token to a frame.

        A blank of the shortest duration always does, so that each frame can be left.
        """
        if token != BLANK:
            return duration < self.remaining
        shortest = min(d for d in self.durations(BLANK) if d > 0)
        return 0 < duration <= max(self.remaining, shortest)

    def _predict(self, prefixes: Sequence[Prefix]) -> None:
        """Let the predictor read the last tokens of prefixes."""
        if not prefixes:
            return
        tokens = torch.tensor([[p.token] for p in prefixes], device=self.frame.device)
        parts = zip(*(prefix.before for prefix in prefixes), strict=True)
        outputs, after = self.predictor.advance(tokens, tuple(map(torch.cat, parts)))
        predicted = self.joint.predictor(outputs[:, 0])
        for number, prefix in enumerate(prefixes):
            prefix.predicted = predicted[number]
            prefix.after = tuple(part[number : number + 1] for part in after)


def _sum(a: Hypothesis, b: Hypothesis) -> Hypothesis:
    """Return the better of two with the probability of both."""
    better, other = (a, b) if a.score >= b.score else (b, a)
    score = better.score + math.log1p(math.exp(other.score - better.score))
    return replace(better, score=score)


def _score_a_token(hypothesis: Hypothesis) -> float:
    return hypothesis.score / (hypothesis.prefix.length + 1)
