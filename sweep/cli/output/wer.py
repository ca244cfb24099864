"""Word error rates for scripts and for people."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes seconds that a table should not
    from core.evaluation.wer import WerReport


def wer_values(report: "WerReport") -> dict[str, Any]:
    """A word error rate as a fraction, for scripts."""
    return {
        "wer": report.wer,
        "wer_low": report.low,
        "wer_high": report.high,
        "utterances": report.num_utterances,
        "words": sum(report.words),
    }


def wer_line(values: Mapping[str, Any]) -> str:
    """The same, to be read."""
    low, high = 100 * values["wer_low"], 100 * values["wer_high"]
    return (
        f"WER {100 * values['wer']:.2f} % ({low:.2f} to {high:.2f})"
        f" on {values['utterances']} utterances, {values['words']} words"
    )
