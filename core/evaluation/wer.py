"""Word error rate with its confidence interval: the only file that imports jiwer.

Intervals come from a bootstrap over utterances: whole utterances are resampled, because errors
within one depend on each other.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import jiwer
import numpy as np
from jaxtyping import Float

_DRAWS_AT_ONCE = 1 << 22  # bounds memory: 32 MB of indices

Kind = Literal["equal", "substitute", "delete", "insert"]
"""Kinds of aligned words, as jiwer names them."""

Counts = Sequence[int] | Sequence[float]
"""Numbers of errors or words by utterance; fractions where they are means over seeds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WordErrors:
    """Word errors of utterances, in their order."""

    errors: tuple[int, ...]
    words: tuple[int, ...]
    """Words of each utterance's reference."""
    substitutions: int
    deletions: int
    insertions: int

    @property
    def wer(self) -> float:
        return sum(self.errors) / sum(self.words)


@dataclass(frozen=True, kw_only=True, slots=True)
class WerReport:
    """A word error rate as a fraction, so 0.05 is 5 %, with its confidence interval."""

    wer: float
    low: float
    high: float
    errors: tuple[int, ...]
    """Errors of each utterance, in their order."""
    words: tuple[int, ...]
    """Words of each utterance's reference."""
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
    """Two-sided, from the same bootstrap: how rarely another sample of speech turns the sign."""

    @property
    def is_significant(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Aligned:
    """A word of the reference, of the hypothesis, or of both."""

    kind: Kind
    reference: str
    """Empty for an insertion."""
    hypothesis: str
    """Empty for a deletion."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Confusion:
    """A word recognized as another, and how often; an empty word for deletions and insertions."""

    reference: str
    hypothesis: str
    count: int


def align_words(reference: str, hypothesis: str) -> list[Aligned]:
    """Align words with the fewest errors, as `word_errors` counts them.

    Raises:
        ValueError: if the reference has no words.
    """
    if not reference.split():
        raise ValueError("`reference` must have words, but has none instead.")
    output = jiwer.process_words(reference, hypothesis)
    reference_words, hypothesis_words = output.references[0], output.hypotheses[0]
    aligned: list[Aligned] = []
    for chunk in output.alignments[0]:
        left_words = reference_words[chunk.ref_start_idx : chunk.ref_end_idx]
        right_words = hypothesis_words[chunk.hyp_start_idx : chunk.hyp_end_idx]
        kind = cast("Kind", chunk.type)
        # A deletion has no words on the right, an insertion none on the left: they are filled with
        # "".
        pairs = itertools.zip_longest(left_words, right_words, fillvalue="")
        aligned += [Aligned(kind=kind, reference=word, hypothesis=guess) for word, guess in pairs]
    return aligned


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> WordErrors:
    """Count word errors; an empty hypothesis is all deletions.

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
    """Return the word error rate with its interval.

    Args:
        references: one per utterance.
        hypotheses: one per utterance.
        samples: of the bootstrap.
        confidence: of the interval.
        seed: of the bootstrap.

    Raises:
        ValueError: if references and hypotheses do not pair up, or a reference has no words.
    """
    counts = word_errors(references, hypotheses)
    low, high = bootstrap(
        counts.errors, counts.words, samples=samples, confidence=confidence, seed=seed
    )
    return WerReport(
        wer=counts.wer,
        low=low,
        high=high,
        errors=counts.errors,
        words=counts.words,
        substitutions=counts.substitutions,
        deletions=counts.deletions,
        insertions=counts.insertions,
    )


def confusions(references: Sequence[str], hypotheses: Sequence[str]) -> list[Confusion]:
    """Return every error of the alignment that `word_errors` counts, most frequent first."""
    aligned = jiwer.process_words(list(references), list(hypotheses))
    counts = Counter(
        pair
        for reference, hypothesis, chunks in zip(
            aligned.references, aligned.hypotheses, aligned.alignments, strict=True
        )
        for chunk in chunks
        if chunk.type != "equal"
        for pair in itertools.zip_longest(
            reference[chunk.ref_start_idx : chunk.ref_end_idx],
            hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx],
            fillvalue="",
        )
    )
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [
        Confusion(reference=reference, hypothesis=hypothesis, count=n)
        for (reference, hypothesis), n in ordered
    ]


def bootstrap(
    errors: Counts, words: Counts, *, samples: int, confidence: float, seed: int
) -> tuple[float, float]:
    """Return the percentile interval of sum(errors) / sum(words) over resampled utterances.

    Args:
        errors: of each utterance.
        words: of each utterance.
        samples: of the bootstrap.
        confidence: of the interval, as 0.95.
        seed: of the bootstrap.
    """
    # The ratio of sums, not the mean of ratios: errors (1, 0) in (1, 9) words are 10 %, not 50 %.
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
    """Compare two recognizers on the same utterances, resampled together.

    Args:
        errors_a: of the first, by utterance.
        errors_b: of the second, by utterance.
        words: of each utterance.
        samples: of the bootstrap.
        confidence: of the interval.
        seed: of the bootstrap.

    Raises:
        ValueError: if the three do not count the same utterances.
    """
    if not len(errors_a) == len(errors_b) == len(words):
        raise ValueError(
            "`errors_a`, `errors_b` and `words` must count the same utterances,"
            f" but have {len(errors_a)}, {len(errors_b)} and {len(words)} instead."
        )
    # The same resamples for both recognizers: what makes an utterance hard for both cancels.
    differences = [a - b for a, b in zip(errors_a, errors_b, strict=True)]
    rates = _rates(differences, words, samples, seed)
    low, high = _interval(rates, confidence)
    # The observed sample counts too, so that no finite number of samples gives a p-value of 0.
    beyond = 1 + min(int((rates <= 0).sum()), int((rates >= 0).sum()))
    return WerDifference(
        difference=sum(differences) / sum(words),
        low=low,
        high=high,
        # 1,000 samples of which none has the other sign: 2 / 1,001.
        p_value=min(1.0, 2 * beyond / (samples + 1)),
    )


def _rates(errors: Counts, words: Counts, samples: int, seed: int) -> Float[np.ndarray, " samples"]:
    """Return sum(errors) / sum(words) of each bootstrap sample."""
    totals = np.stack([errors, words]).astype(np.float64)  # (2, N)
    return np.concatenate([part[0] / part[1] for part in _resample(totals, samples, seed)])


def _interval(rates: Float[np.ndarray, " samples"], confidence: float) -> tuple[float, float]:
    # 0.95: quantiles 0.025 and 0.975.
    outside = (1 - confidence) / 2
    low, high = np.quantile(rates, [outside, 1 - outside])
    return float(low), float(high)


def _resample(
    totals: Float[np.ndarray, "2 utterances"], samples: int, seed: int
) -> Iterator[Float[np.ndarray, "2 part"]]:
    """Yield sums over utterances that are drawn with replacement, as many as there are."""
    rng = np.random.default_rng(seed)
    num_utterances = totals.shape[1]
    at_once = max(1, _DRAWS_AT_ONCE // num_utterances)
    for begin in range(0, samples, at_once):
        shape = (min(at_once, samples - begin), num_utterances)
        # (2, part, N) summed over its utterances: errors and words of `part` samples.
        yield totals[:, rng.integers(num_utterances, size=shape)].sum(axis=2)


def _count(chunk: jiwer.AlignmentChunk) -> int:
    if chunk.type == "equal":
        return 0
    num_reference, num_hypothesis = (
        chunk.ref_end_idx - chunk.ref_start_idx,
        chunk.hyp_end_idx - chunk.hyp_start_idx,
    )
    # A substitution of n words by n, a deletion of n by 0, an insertion of 0 by n: n errors.
    return int(max(num_reference, num_hypothesis))
