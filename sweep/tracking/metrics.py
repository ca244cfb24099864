"""By what names and numbers a trial is told to a tracker. Pure."""

import re
from collections.abc import Mapping

from core.report import Outcome, Report
from sweep.ledger.records import CurvePoint

STAGES = ("speech", "teacher", "search", "tune", "measure")
AFTER_ALL = len(STAGES)
"""In the `order` of what is filled up from the ledger, which knows no stages."""
NOTHING = (-1, -1)
"""The `order` of what comes before every report."""
FILLED = "curve.filled"
"""A run's tag: up to which step its curve came from the ledger."""


def key(name: str) -> str:
    """The name in the letters that MLflow allows in one."""
    return re.sub(r"[^\w\-./ ]", "_", name)


def order(report: Report) -> tuple[int, int]:
    """Where a report stands in its trial's life: by steps, then by stage; first of all speech."""
    return _order(report.step, STAGES.index(report.stage))


def _order(step: int, stage: int) -> tuple[int, int]:
    return (-1, step) if STAGES[stage] == "speech" else (step, stage)


def report_metrics(report: Report) -> dict[str, float]:
    """The curves of a running trial; `wer` and `gflops` themselves are kept for its end."""
    stage = report.stage
    values: Mapping[str, float | None] = {
        "val/wer": report.wer,
        "val/gflops": report.gflops,
        f"{stage}/expected_sparsity": report.expected_sparsity,
        f"{stage}/realised_sparsity": report.realised_sparsity,
        **{f"losses/{key(name)}": value for name, value in report.losses.items()},
        "speed/audio_seconds_per_second": report.audio_seconds_per_second,
        "progress/step": float(report.step),
        "progress/stage": float(STAGES.index(stage)),
        "progress/share": report.step / report.total_steps if report.total_steps else None,
    }
    return {name: float(value) for name, value in values.items() if value is not None}


def curve_metrics(point: CurvePoint) -> dict[str, float]:
    """What the ledger remembers of a report, by the same names."""
    return {
        "val/wer": point.wer,
        "val/gflops": point.gflops,
        "progress/step": float(point.step),
    }


def last_logged(latest: Mapping[str, float], *, filled: int | None = None) -> tuple[int, int]:
    """The `order` of the last report behind the latest values of a run's metrics."""
    found = [NOTHING]
    if "progress/stage" in latest:
        found.append(_order(int(latest["progress/step"]), int(latest["progress/stage"])))
    if filled is not None:
        found.append((filled, AFTER_ALL))
    return max(found)


def outcome_metrics(outcome: Outcome) -> dict[str, float]:
    """What a finished trial is judged by: one value each, logged once."""
    values = {
        "wer": outcome.wer,
        "wer_low": outcome.wer_low,
        "wer_high": outcome.wer_high,
        "test_wer": outcome.test_wer,
        "test_wer_low": outcome.test_wer_low,
        "test_wer_high": outcome.test_wer_high,
        "gflops": outcome.gflops,
        "params": outcome.params,
        "latency_ms": outcome.latency_ms,
        "latency_busy": outcome.latency_busy,
        "real_time_factor": outcome.real_time_factor,
        "target_sparsity": outcome.target_sparsity,
        "realised_sparsity": outcome.realised_sparsity,
        "flops_sparsity": outcome.flops_sparsity,
        "params_sparsity": outcome.params_sparsity,
        "latency_sparsity": outcome.latency_sparsity,
        "steps": outcome.steps,
    }
    return {name: float(value) for name, value in values.items() if value is not None}
