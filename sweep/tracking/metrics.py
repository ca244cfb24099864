"""Names and values of the metrics that MLflow shows of a trial. Pure."""

import re
from collections.abc import Mapping

from core.report import Outcome, Report
from sweep.ledger.records import CurvePoint

STAGES = ("speech", "teacher", "search", "tune", "measure")
AFTER_ALL = len(STAGES)
"""Stage in the order of points that are filled from the ledger, which stores no stages."""
BEFORE_ALL = (-1, -1)
"""Order before every report."""
FILLED = "curve.filled"
"""A run's tag: the step up to which its curve was filled from the ledger."""


def metric_key(name: str) -> str:
    """The name with only the characters that MLflow allows in one."""
    # "pruning.l0.rate(log)" -> "pruning.l0.rate_log_".
    return re.sub(r"[^\w\-./ ]", "_", name)


def report_order(report: Report) -> tuple[int, int]:
    """Position of a report among its trial's: by steps, then by stage; speech comes first."""
    return _order(report.step, STAGES.index(report.stage))


def _order(step: int, stage: int) -> tuple[int, int]:
    # The parts of the speech are counted by `step`, too, and come before all training:
    # speech 3 of 4 is (-1, 3), the teacher's step 2 is (2, 1), step 2 of the tuning is (2, 3).
    return (-1, step) if STAGES[stage] == "speech" else (step, stage)


def report_metrics(report: Report) -> dict[str, float]:
    """The curves of a running trial; `wer` and `gflops` without a prefix are logged at its end."""
    stage = report.stage
    values: Mapping[str, float | None] = {
        "val/wer": report.wer,
        "val/gflops": report.gflops,
        f"{stage}/expected_sparsity": report.expected_sparsity,
        f"{stage}/realised_sparsity": report.realised_sparsity,
        **{f"losses/{metric_key(name)}": value for name, value in report.losses.items()},
        "speed/audio_seconds_per_second": report.audio_seconds_per_second,
        "progress/step": float(report.step),
        "progress/stage": float(STAGES.index(stage)),
        "progress/share": report.step / report.total_steps if report.total_steps else None,
    }
    return {name: float(value) for name, value in values.items() if value is not None}


def curve_metrics(point: CurvePoint) -> dict[str, float]:
    """The metrics of a report that the ledger stores, by the same names."""
    return {
        "val/wer": point.wer,
        "val/gflops": point.gflops,
        "progress/step": float(point.step),
    }


def last_logged_order(latest: Mapping[str, float], *, filled: int | None = None) -> tuple[int, int]:
    """The order of the last report that is logged in a run.

    Args:
        latest: the latest values of the run's metrics.
        filled: the step up to which the curve was filled from the ledger.
    """
    # The latest metrics say step 300 of the tuning, (300, 3), and the tag says that the ledger
    # filled up to 350, (350, 5): reports up to step 350 are left out.
    orders = [BEFORE_ALL]
    if "progress/stage" in latest:
        orders.append(_order(int(latest["progress/step"]), int(latest["progress/stage"])))
    if filled is not None:
        orders.append((filled, AFTER_ALL))
    return max(orders)


def outcome_metrics(outcome: Outcome) -> dict[str, float]:
    """The final metrics of a finished trial, each logged once."""
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
        "latency_idle": outcome.latency_idle,
        "speedup": outcome.speedup,
        "speedup_low": outcome.speedup_low,
        "speedup_high": outcome.speedup_high,
        "real_time_factor": outcome.real_time_factor,
        "target_sparsity": outcome.target_sparsity,
        "realised_sparsity": outcome.realised_sparsity,
        "flops_sparsity": outcome.flops_sparsity,
        "params_sparsity": outcome.params_sparsity,
        "latency_sparsity": outcome.latency_sparsity,
        "steps": outcome.steps,
    }
    return {name: float(value) for name, value in values.items() if value is not None}
