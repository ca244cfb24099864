"""Word error rate with its uncertainty: the only file that imports jiwer.

Intervals come from a bootstrap over utterances: whole utterances are drawn again, because the
errors inside one depend on each other.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import jiwer
import numpy as np
from jaxtyping import Float

_DRAWS_AT_ONCE = 1 << 22  # bounds memory: 32 MB of indices

Kind = Literal["same", "other", "missed", "made up"]
_KINDS: dict[str, Kind] = {
    "equal": "same",
    "substitute": "other",
    "delete": "missed",
    "insert": "made up",
}

Counts = Sequence[int] | Sequence[float]
"""Of errors or of words, by utterance; not whole where they are means over seeds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WordErrors:
    """Errors of some utterances, in their order."""

    errors: tuple[int, ...]
    words: tuple[int, ...]
    """Of the reference, an utterance."""
    substitutions: int
    deletions: int
    insertions: int

    @property
    def wer(self) -> float:
        return sum(self.errors) / sum(self.words)


@dataclass(frozen=True, kw_only=True, slots=True)
class WerReport:
    """A word error rate as a fraction, so 0.05 is 5 %, between the ends of its interval."""

    wer: float
    low: float
    high: float
    errors: tuple[int, ...]
    """An utterance, in the order given."""
    words: tuple[int, ...]
    """Of the reference, an utterance."""
    substitutions: int
    deletions: int
    insertions: int

    @property
    def num_utterances(self) -> int:
        return len(self.words)


@dataclass(frozen=True, kw_only=True, slots=True)
class WerDifference:
    """WER of a minus WER of b on the same utterances; negative where a is better."""

    difference: float
    low: float
    high: float
    p_value: float
    """Two-sided, by the same draws: how seldom the sign would turn by another choice of speech."""

    @property
    def is_significant(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Aligned:
    """A word that was said, heard, or both."""

    kind: Kind
    reference: str
    """Empty where the word is made up."""
    heard: str
    """Empty where the word was missed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Confusion:
    """A word that was heard as another, so often; nothing stands for one left out or put in."""

    reference: str
    heard: str
    count: int


def align_words(said: str, heard: str) -> list[Aligned]:
    """Word by word with the fewest errors; so many differ as `word_errors` counts.

    Raises:
        ValueError: if nothing was said.
    """
    if not said.split():
        raise ValueError("`said` must have words, but has none instead.")
    found = jiwer.process_words(said, heard)
    words, guesses = found.references[0], found.hypotheses[0]
    aligned: list[Aligned] = []
    for chunk in found.alignments[0]:
        mine = words[chunk.ref_start_idx : chunk.ref_end_idx]
        theirs = guesses[chunk.hyp_start_idx : chunk.hyp_end_idx]
        kind = _KINDS[chunk.type]
        pairs = itertools.zip_longest(mine, theirs, fillvalue="")
        aligned += [Aligned(kind=kind, reference=word, heard=guess) for word, guess in pairs]
    return aligned


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> WordErrors:
    """Align words; an empty hypothesis is all deletions.

    Raises:
        ValueError: if the two do not pair up, or a reference has no words.
    """
    if len(references) != len(hypotheses):
        raise ValueError(
            f"`hypotheses` must be as many as the {len(references)} references,"
            f" but are {len(hypotheses)} instead."
        )
    words = tuple(len(reference.split()) for reference in references)
    if not all(words) or not words:
        which = f"number {words.index(0)} is empty" if words else "there are none"
        raise ValueError(f"`references` must have words, but {which} instead.")
    aligned = jiwer.process_words(list(references), list(hypotheses))
    errors = tuple(sum(map(_count, utterance)) for utterance in aligned.alignments)
    return WordErrors(
        errors=errors,
        words=words,
        substitutions=aligned.substitutions,
        deletions=aligned.deletions,
        insertions=aligned.insertions,
    )


def wer_report(
    references: Sequence[str],
    hypotheses: Sequence[str],
    *,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> WerReport:
    """Measure a recogniser.

    Raises:
        ValueError: if references and hypotheses do not pair up, or a reference has no words.
    """
    found = word_errors(references, hypotheses)
    low, high = bootstrap(
        found.errors, found.words, samples=samples, confidence=confidence, seed=seed
    )
    return WerReport(
        wer=found.wer,
        low=low,
        high=high,
        errors=found.errors,
        words=found.words,
        substitutions=found.substitutions,
        deletions=found.deletions,
        insertions=found.insertions,
    )


def confusions(references: Sequence[str], hypotheses: Sequence[str]) -> list[Confusion]:
    """Every error of the alignment that `word_errors` counts, the most frequent first."""
    aligned = jiwer.process_words(list(references), list(hypotheses))
    counts = Counter(
        pair
        for said, heard, chunks in zip(
            aligned.references, aligned.hypotheses, aligned.alignments, strict=True
        )
        for chunk in chunks
        if chunk.type != "equal"
        for pair in itertools.zip_longest(
            said[chunk.ref_start_idx : chunk.ref_end_idx],
            heard[chunk.hyp_start_idx : chunk.hyp_end_idx],
            fillvalue="",
        )
    )
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [Confusion(reference=said, heard=heard, count=n) for (said, heard), n in ordered]


def bootstrap(
    errors: Counts, words: Counts, *, samples: int, confidence: float, seed: int
) -> tuple[float, float]:
    """Ends of the percentile interval of sum(errors) / sum(words) over resampled utterances."""
    return _interval(_rates(errors, words, samples, seed), confidence)


def paired_difference(
    errors_a: Counts,
    errors_b: Counts,
    words: Counts,
    *,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> WerDifference:
    """Compare two recognisers on the same utterances, drawn together.

    Raises:
        ValueError: if the three do not count the same utterances.
    """
    if not len(errors_a) == len(errors_b) == len(words):
        raise ValueError(
            "`errors_a`, `errors_b` and `words` must count the same utterances,"
            f" but have {len(errors_a)}, {len(errors_b)} and {len(words)} instead."
        )
    differences = [a - b for a, b in zip(errors_a, errors_b, strict=True)]
    rates = _rates(differences, words, samples, seed)
    low, high = _interval(rates, confidence)
    # The draw that was made counts too, so that no finite number of draws gives 0.
    beyond = 1 + min(int((rates <= 0).sum()), int((rates >= 0).sum()))
    return WerDifference(
        difference=sum(differences) / sum(words),
        low=low,
        high=high,
        p_value=min(1.0, 2 * beyond / (samples + 1)),
    )


def _rates(errors: Counts, words: Counts, samples: int, seed: int) -> Float[np.ndarray, " samples"]:
    """Of resampled utterances, sum(errors) / sum(words)."""
    tally = np.stack([errors, words]).astype(np.float64)  # (2, N)
    return np.concatenate([part[0] / part[1] for part in _resampled(tally, samples, seed)])


def _interval(rates: Float[np.ndarray, " samples"], confidence: float) -> tuple[float, float]:
    outside = (1 - confidence) / 2
    low, high = np.quantile(rates, [outside, 1 - outside])
    return float(low), float(high)


def _resampled(
    tally: Float[np.ndarray, "2 utterances"], samples: int, seed: int
) -> Iterator[Float[np.ndarray, "2 part"]]:
    """Sums over as many utterances as there are, drawn with replacement, sample by sample."""
    chance = np.random.default_rng(seed)
    num_utterances = tally.shape[1]
    at_once = max(1, _DRAWS_AT_ONCE // num_utterances)
    for begin in range(0, samples, at_once):
        shape = (min(at_once, samples - begin), num_utterances)
        yield tally[:, chance.integers(num_utterances, size=shape)].sum(axis=2)


def _count(chunk: jiwer.AlignmentChunk) -> int:
    if chunk.type == "equal":
        return 0
    said, heard = chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx
    return int(max(said, heard))
