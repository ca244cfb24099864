"""Two fronts side by side: how much each covers, and who covers what share of the other. Pure.

Where a sweep ran its points with several seeds, each seed gives a front of its own. What all of
them attain, what half of them do and what one does are the attainment surfaces (Fonseca and
Fleming, 1996), here a band around a median.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import moocore
import numpy as np

from sweep.config.diff import changes
from sweep.config.sweep import SweepConfig
from sweep.pareto import front
from sweep.pareto.front import Point

BUDGETS = (0.0, 0.25, 0.5, 0.75, 0.9)
"""Shares of FLOPs removed at which both are asked for their best WER."""

JUDGED = ("trial.corpus.", "trial.evaluation.", "trial.pruning.utterance_seconds")
"""By what speech, and at what length, models are judged."""

StepCurve = tuple[tuple[float, float], ...]
"""Corners of a front, (GFLOPs, WER), cheapest first: from each on, so much WER can be had."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontSide:
    """One of the two."""

    name: str
    points: Sequence[Point]
    """All that are judged."""
    runs: Sequence[Sequence[Point]] = ()
    """The same points again, a seed a run; a band needs two."""

    @property
    def front(self) -> list[Point]:
        return front.pareto_front(self.points)

    @property
    def has_band(self) -> bool:
        return len(self.runs) > 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """WER that the runs of a side reach, at each cost."""

    best: StepCurve
    """At least one of them."""
    median: StepCurve
    worst: StepCurve
    """All of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Both sides, judged by one corner."""

    sides: tuple[FrontSide, FrontSide]
    worst_gflops: float
    """The shared corner is a WER of 1 at so many GFLOPs: the larger unpruned model's."""
    hypervolumes: tuple[float, float]
    """As shares of all that could be."""
    run_hypervolumes: tuple[tuple[float, ...], tuple[float, ...]]
    """The same of each run."""
    covers: tuple[float, float]
    """Share of the other's front that a side matches or beats (Zitzler and Thiele, 1998)."""


def compare(one: FrontSide, other: FrontSide) -> Comparison:
    """Judge two sides, each of which has a point.

    Raises:
        ValueError: if one has none.
    """
    # Sweeps of two teachers have two unpruned models. With the smaller one's corner, points of the
    # other beyond it would add nothing.
    corner = max(front.unpruned_gflops(side.points) for side in (one, other))

    def share(points: Sequence[Point]) -> float:
        return front.hypervolume(points, worst_wer=1.0, worst_gflops=corner) / corner

    return Comparison(
        sides=(one, other),
        worst_gflops=corner,
        hypervolumes=(share(one.points), share(other.points)),
        run_hypervolumes=(tuple(map(share, one.runs)), tuple(map(share, other.runs))),
        covers=(coverage(one.front, other.front), coverage(other.front, one.front)),
    )


def unlike(one: SweepConfig, other: SweepConfig) -> list[str]:
    """Describe how the two sweeps measure differently: their numbers are then not comparable."""
    return [str(change) for change in changes(one, other) if change.name.startswith(JUDGED)]


def coverage(ours: Sequence[Point], theirs: Sequence[Point]) -> float:
    """Share of their points that one of ours is at least as good as, in WER and in FLOPs."""
    # Not symmetric, and 1 both ways for equal fronts: ours (0.2, 6) covers theirs (0.3, 7) and not
    # (0.1, 9), which gives 0.5.
    covered = [any(o.wer <= t.wer and o.gflops <= t.gflops for o in ours) for t in theirs]
    return sum(covered) / len(covered)


def best_wer(points: Sequence[Point], gflops: float) -> float | None:
    """The lowest WER that can be had for at most so many FLOPs, if anything can."""
    return min((p.wer for p in points if p.gflops <= gflops), default=None)


def band(runs: Sequence[Sequence[Point]]) -> Band:
    """Return the WER that one, half and all of the runs reach."""
    # One array of all points with the number of the run of each, as moocore wants it: rows of
    # GFLOPs, WER; the surfaces have the percentile as a third column.
    values = np.array([(p.gflops, p.wer) for run in runs for p in run], dtype=float)
    sets = np.array([number for number, run in enumerate(runs) for _ in run])
    surfaces = moocore.eaf(values, sets, percentiles=[0, 50, 100])

    def at(percentile: int) -> StepCurve:
        corners = surfaces[surfaces[:, 2] == percentile][:, :2]
        return tuple(sorted((float(gflops), float(wer)) for gflops, wer in corners))

    return Band(best=at(0), median=at(50), worst=at(100))


def step_curve(points: Sequence[Point]) -> StepCurve:
    return tuple((p.gflops, p.wer) for p in points)


def values(comparison: Comparison) -> dict[str, Any]:
    """All of it for scripts."""
    rows = zip(
        comparison.sides,
        comparison.hypervolumes,
        comparison.run_hypervolumes,
        comparison.covers,
        strict=True,
    )
    return {
        "corner": {"wer": 1.0, "gflops": comparison.worst_gflops},
        "sweeps": [
            {
                "name": side.name,
                "front": [{"trial": p.name, "wer": p.wer, "gflops": p.gflops} for p in side.front],
                "hypervolume": hypervolume,
                "run_hypervolumes": list(runs),
                "covers": covers,
            }
            for side, hypervolume, runs, covers in rows
        ],
        "budgets": [
            {"flops_removed": removed, "gflops": gflops, "wer": list(wers)}
            for removed, gflops, wers in budgets(comparison)
        ],
    }


def budgets(comparison: Comparison) -> list[tuple[float, float, tuple[float | None, ...]]]:
    """At some shares of FLOPs removed: what that leaves, and the best WER of each side."""
    one, other = comparison.sides
    rows: list[tuple[float, float, tuple[float | None, ...]]] = []
    for removed in BUDGETS:
        # The unpruned model itself is within its budget, whatever its last bit.
        gflops = (1 - removed) * comparison.worst_gflops * (1 + 1e-9)
        wers = (best_wer(one.points, gflops), best_wer(other.points, gflops))
        rows.append((removed, gflops, wers))
    return rows
