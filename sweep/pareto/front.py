"""The front: which outcomes no other beats, how much they cover, and where it bends. Pure.

Word error rate and FLOPs are minimised, and in some sweeps a third. Only finished trials stand on
it. Hypervolume and knee are those of the two.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.report import Outcome
from sweep.ledger.records import TrialRecord

BUSY = " (busy)"
"""Stands behind a latency that was measured while other programs kept the machine busy."""
BESIDE = " (beside trials)"
"""Stands behind a latency that could not be measured again after the last trial."""


def latency_text(result: Mapping[str, Any]) -> str:
    """A latency in ms, with how many times as fast as the unpruned model, or why it says little.

    Args:
        result: fields of an outcome, by name.
    """
    if result["latency_busy"]:
        note = BUSY
    elif result["latency_idle"] is False:
        note = BESIDE
    else:
        note = "" if result["speedup"] is None else f" ({result['speedup']:.1f}x)"
    return f"{result['latency_ms']:.1f}{note}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One outcome of one finished trial; a curve trial gives several."""

    trial: int
    outcome: int
    """Its place among the trial's outcomes, from 0."""
    result: Outcome

    @property
    def wer(self) -> float:
        return self.result.wer

    @property
    def gflops(self) -> float:
        return self.result.gflops

    @property
    def name(self) -> str:
        """`7`, or `7.2` for a later outcome of the same trial."""
        return f"{self.trial}.{self.outcome}" if self.outcome else str(self.trial)


def points(records: Iterable[TrialRecord]) -> list[Point]:
    """The outcomes of the finished trials, by trial and outcome.

    An outcome that is not a finite number in both objectives is comparable with none and left out.
    """
    return [
        Point(trial=record.number, outcome=index, result=outcome)
        for record in sorted(records, key=lambda record: record.number)
        if record.state == "finished"
        for index, outcome in enumerate(record.outcomes)
        if math.isfinite(outcome.wer) and math.isfinite(outcome.gflops)
    ]


def pareto_front(
    points: Iterable[Point], objectives: Sequence[str] = ("wer", "gflops")
) -> list[Point]:
    """Keep the points that no other beats, cheapest first.

    A point beats another if it is no worse in all objectives and better in one. Of points equal
    in all, the one with the lowest trial and outcome number stays, whatever order they come in.
    """
    ordered = sorted(points, key=lambda p: (p.gflops, p.wer, p.trial, p.outcome))
    if len(objectives) > 2:
        return _select_nondominated(ordered, objectives)
    front: list[Point] = []
    # By cost, then WER: (GFLOPs, WER) = (2, 0.5), (4, 0.6), (6, 0.2), (6, 0.3). A point is on the
    # front if its WER is below that of all cheaper ones, which the last of the front has: (2, 0.5),
    # (6, 0.2).
    for point in ordered:
        if not front or point.wer < front[-1].wer:
            front.append(point)
    return front


def _select_nondominated(ordered: Sequence[Point], objectives: Sequence[str]) -> list[Point]:
    # Imported here: most sweeps have two objectives, and these take longer than to read a ledger.
    import moocore  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    values = np.array([[getattr(p.result, name) for name in objectives] for p in ordered])
    # `keep_weakly=False` keeps the first of equal points, and `ordered` has the lowest number
    # first.
    is_best = moocore.is_nondominated(values.reshape(-1, len(objectives)), keep_weakly=False)
    return [point for point, is_on_front in zip(ordered, is_best, strict=True) if is_on_front]


def feasible(
    points: Iterable[Point],
    *,
    max_wer: float | None = None,
    max_gflops: float | None = None,
    max_params: float | None = None,
    max_latency_ms: float | None = None,
) -> list[Point]:
    """Keep the points within all given limits, in their order; a limit itself is allowed.

    Args:
        points: in any order.
        max_wer: a fraction.
        max_gflops: of one utterance.
        max_params: number of parameters.
        max_latency_ms: of one utterance, in milliseconds.
    """

    def fits(outcome: Outcome) -> bool:
        return (
            (max_wer is None or outcome.wer <= max_wer)
            and (max_gflops is None or outcome.gflops <= max_gflops)
            and (max_params is None or outcome.params <= max_params)
            and (max_latency_ms is None or outcome.latency_ms <= max_latency_ms)
        )

    return [point for point in points if fits(point.result)]


def hypervolume(front: Sequence[Point], *, worst_wer: float, worst_gflops: float) -> float:
    """Returns the area between the front and the worst corner, in WER times GFLOPs.

    Larger is better. Points beyond the worst corner add nothing, and beaten points add nothing.
    The area is a sum of rectangles, one for each step of the front from the lowest WER on. With
    the corner at (1.0, 10), the points (WER, GFLOPs) = (0.2, 6) and (0.5, 2) give
    (1 - 0.2) * (10 - 6) + (1 - 0.5) * (6 - 2) = 5.2. The tests compare it with moocore, which is
    not used here because its import takes longer than everything else that `status` does.
    """
    area, level = 0.0, worst_gflops
    # `level` is the cost from which on the area is covered already, by points of lower WER.
    for wer, gflops in sorted((p.wer, p.gflops) for p in front):
        if wer < worst_wer and gflops < level:
            area += (worst_wer - wer) * (level - gflops)
            level = gflops
    return area


def unpruned_gflops(points: Iterable[Point]) -> float:
    """Return the GFLOPs of the unpruned model, as the least pruned point states them.

    Raises:
        ValueError: if there are no points to tell it.
    """
    least = min(points, key=lambda p: (p.result.flops_sparsity, p.trial, p.outcome), default=None)
    if least is None:
        raise ValueError("`points` must be one or more, but is empty instead.")
    # 6 GFLOPs with 0.4 of the FLOPs removed: 6 / 0.6 = 10. The control has nothing removed, and the
    # least pruned point loses the fewest digits.
    return least.gflops / (1 - least.result.flops_sparsity)


def hypervolume_share(points: Sequence[Point]) -> float:
    """Hypervolume as a share of all that could be: no errors at no FLOPs would be 1.

    The worst corner is a WER of 1 at the unpruned model's FLOPs. It does not move while a sweep
    grows, so that the share never falls.
    """
    if not points:
        return 0.0
    worst_gflops = unpruned_gflops(points)
    return hypervolume(points, worst_wer=1.0, worst_gflops=worst_gflops) / worst_gflops


def knee(front: Sequence[Point]) -> Point:
    """Where the front bends: the point farthest below the chord between its two ends.

    Both objectives are first scaled so that the ends lie at (0, 1) and (1, 0). Distance to the
    chord is then (1 - x - y) / sqrt(2), so the knee has the smallest x + y: a unit of FLOPs saved
    costs less than a unit of WER before it, and more after. Of equally far points, which with two
    points or a front that bulges outwards are the ends, the one with the lowest WER is the knee.

    Raises:
        ValueError: if the front is empty.
    """
    if not front:
        raise ValueError("`front` must hold a point or more to have a knee, but is empty instead.")
    gflops = [p.gflops for p in front]
    wers = [p.wer for p in front]

    def scale(value: float, values: list[float]) -> float:
        spread = max(values) - min(values)
        return (value - min(values)) / spread if spread else 0.0

    return min(
        front,
        # Points at (WER, GFLOPs) = (0.5, 2), (0.25, 4), (0.2, 10) have x + y = 1, 0.4167 and 1: the
        # knee is (0.25, 4).
        # Rounded, so that the ends, at 1 each, tie in spite of the last bit.
        key=lambda p: (round(scale(p.gflops, gflops) + scale(p.wer, wers), 12), p.wer),
    )
