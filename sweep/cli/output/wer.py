"""Word error rates as values and as text."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch's import takes seconds
    from core.evaluation.wer import WerReport


def wer_values(report: "WerReport") -> dict[str, Any]:
    """Returns a word error rate and its interval as fractions, for scripts."""
    return {
        "wer": report.wer,
        "wer_low": report.low,
        "wer_high": report.high,
        "utterances": report.num_utterances,
        "words": sum(report.words),
    }


def wer_line(values: Mapping[str, Any]) -> str:
    """Returns a word error rate as a line of text, in percent."""
    low, high = 100 * values["wer_low"], 100 * values["wer_high"]
    return (
        f"WER {100 * values['wer']:.2f} % ({low:.2f} to {high:.2f})"
        f" on {values['utterances']} utterances, {values['words']} words"
    )
