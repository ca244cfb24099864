"""Output of `prune --audio`: a row for each size, beside the unpruned model."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from sweep.pareto.front import BUSY

if TYPE_CHECKING:  # torch takes seconds
    from core.data.calibration_speech import CalibrationSpeech
    from core.one_shot.comparison import PrunedModel, TestSpeech

HEADINGS = (
    "bundle",
    "FLOPs\nremoved (%)",
    "params",
    "GFLOPs",
    "latency\n(ms)",
    "KL",
    "words\nchanged (%)",
)


def pruned_table(
    rows: "Sequence[PrunedModel]", speech: "CalibrationSpeech", test: "TestSpeech | None" = None
) -> Table:
    """Returns the table of all sizes, the unpruned model first."""
    judged = f"; WER on {test.name}" if test else ""
    table = Table(
        title="Pruned without training",
        caption=(
            f"calibrated on {speech.seconds / 60:.1f} min of speech; KL and changed words against"
            f" the unpruned model on {speech.held_out_seconds / 60:.1f} min that were held"
            f" out{judged}"
        ),
    )
    for heading in (*HEADINGS, *(["WER (%)"] if test else [])):
        table.add_column(heading, justify="left" if heading == "bundle" else "right")
    for row in rows:
        table.add_row(
            row.folder or "unpruned",
            f"{100 * row.flops_sparsity:.1f}",
            f"{row.params / 1e6:.2f} M",
            f"{row.gflops:.3g}",
            f"{row.latency_ms:.1f}{BUSY * row.latency_busy}",
            f"{row.kl:.4f}",
            f"{100 * row.words_changed:.1f}",
            *([] if row.wer is None else [f"{100 * row.wer:.2f}"]),
        )
    return table


def pruned_values(
    rows: "Sequence[PrunedModel]", speech: "CalibrationSpeech", test: "TestSpeech | None" = None
) -> dict[str, Any]:
    """Returns the same as plain values."""
    return {
        "calibration_seconds": speech.seconds,
        "held_out_seconds": speech.held_out_seconds,
        "test": test.name if test else None,
        "models": [asdict(row) for row in rows],
    }
