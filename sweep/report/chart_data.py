"""What a picture of a sweep shows, before anyone draws it. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweep.ledger.records import TrialRecord
from sweep.pareto import front
from sweep.pareto.front import Point
from sweep.wer_labels import AGAINST_TEACHER, wer_name

MAX_BEATEN = 1500
"""Beaten points drawn at most: a browser's limit of smoothness without a graphics card."""
MANY = 120
"""Above so many points only the front shows its intervals, and it only while it is no longer."""

WIDE = 12
"""WERs whose largest is so many times the smallest need a logarithmic axis."""

# Okabe and Ito's colours, told apart with any colour vision; the markers differ as well.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY, BLACK = "#CC79A7", "#56B4E9", "#7F7F7F", "#1A1A1A"


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """The marker of a method's points, by plotly's and by matplotlib's names."""

    color: str
    symbol: str
    marker: str


MARKS = {
    "l0": Mark(color=BLUE, symbol="circle", marker="o"),
    "magnitude": Mark(color=ORANGE, symbol="square", marker="s"),
    "uniform": Mark(color=GREEN, symbol="triangle-up", marker="^"),
    "scratch": Mark(color=VERMILION, symbol="triangle-down", marker="v"),
    "random": Mark(color=GREY, symbol="x", marker="X"),
    "dense": Mark(color=BLACK, symbol="diamond", marker="D"),
}
"""Methods that look the same in every sweep; others take what is left, by name."""
OTHERS = (
    Mark(color=PURPLE, symbol="pentagon", marker="p"),
    Mark(color=SKY, symbol="cross", marker="P"),
    Mark(color=GREEN, symbol="hexagon", marker="h"),
    Mark(color=ORANGE, symbol="star", marker="*"),
    Mark(color=BLUE, symbol="triangle-left", marker="<"),
    Mark(color=VERMILION, symbol="triangle-right", marker=">"),
    Mark(color=PURPLE, symbol="diamond-tall", marker="d"),
    Mark(color=SKY, symbol="octagon", marker="8"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Points, front and teacher, ready to be drawn or tabled."""

    title: str
    points: Sequence[Point]
    """All that are judged."""
    shown: Sequence[Point]
    """Those drawn: the front, and of the beaten the nearest to it."""
    front: Sequence[Point]
    knee: Point | None
    params: Mapping[int, Mapping[str, Any]]
    """The sampled leaves, by trial."""
    counts: Mapping[str, int]
    """How many trials are in which state."""
    unpruned_gflops: float
    teacher_wer: float | None
    marks: Mapping[str, Mark]
    """By method, for those that occur."""

    @property
    def is_sparse(self) -> bool:
        """Whether there is room for every point's interval."""
        return len(self.shown) <= MANY

    def has_intervals(self, *, is_front: bool) -> bool:
        return self.is_sparse or (is_front and len(self.front) <= MANY)

    def count(self, method: str) -> int:
        return sum(point.result.method == method for point in self.points)

    @property
    def wer_name(self) -> str:
        """`WER`, or what else it is."""
        return wer_name(point.result for point in self.points)

    @property
    def wer_in_full(self) -> str:
        return self.wer_name.replace("WER", "word error rate")

    @property
    def is_logarithmic(self) -> bool:
        """Whether WERs spread so far that the good ones would stick together on a linear axis."""
        wers = [point.wer for point in self.shown]
        # A WER of 0 has no logarithm, so one such point forces the linear axis.
        return bool(wers) and min(wers) > 0 and max(wers) / min(wers) > WIDE

    @property
    def summary(self) -> str:
        """The sweep in one line."""
        counts = ", ".join(f"{count} {state}" for state, count in self.counts.items() if count)
        if self.knee is None:
            return f"No trial has finished yet ({counts or 'none begun'})."
        size = len(self.front)
        return (
            f"Trials: {counts}. Front: {size} point{'s' * (size != 1)},"
            f" hypervolume {front.hypervolume_share(self.points):.3f}."
            f" Knee: trial {self.knee.name}, {100 * self.knee.wer:.2f} % {self.wer_name} with"
            f" {100 * self.knee.result.flops_sparsity:.0f} % of FLOPs removed."
        )


def compose(
    records: Sequence[TrialRecord], *, title: str, teacher_wer: float | None = None
) -> Scene:
    points = front.points(records)
    pareto_points = front.pareto_front(points)
    if wer_name(point.result for point in points) == AGAINST_TEACHER:
        teacher_wer = None  # what is known of it was counted against something else
    states = ("finished", "running", "waiting", "stopped", "failed")
    return Scene(
        title=title,
        points=points,
        shown=nearest(points, MAX_BEATEN),
        front=pareto_points,
        knee=front.knee(pareto_points) if pareto_points else None,
        params={record.number: record.params for record in records},
        counts={state: sum(r.state == state for r in records) for state in states},
        unpruned_gflops=front.unpruned_gflops(points) if points else 0.0,
        teacher_wer=teacher_wer,
        marks=assign({point.result.method for point in points}),
    )


def assign(methods: set[str]) -> dict[str, Mark]:
    """A mark for each method; the same whatever else is in the sweep, for those known by name."""
    unknown = sorted(methods - set(MARKS))
    # By name and not by order of appearance: a method looks the same after each new trial, as long
    # as no method that sorts before it joins.
    taken = {name: OTHERS[index % len(OTHERS)] for index, name in enumerate(unknown)}
    marks = {name: mark for name, mark in MARKS.items() if name in methods}
    return marks | taken


def nearest(points: Sequence[Point], count: int) -> list[Point]:
    """At most so many points beside the front: peeled off in layers, the front being the first."""
    front_points = front.pareto_front(points)
    if len(points) <= count + len(front_points):
        return list(points)
    import moocore  # noqa: PLC0415  # of large sweeps alone; a table needs neither
    import numpy as np  # noqa: PLC0415

    values = np.array([(p.gflops, p.wer) for p in points])
    # Ranks [0, 0, 1, 2]: layer 0 is the front, layer 1 the front of what remains without it. The
    # sort is stable, so that equal points give the same picture each time.
    order = np.argsort(moocore.pareto_rank(values), kind="stable")
    chosen = np.sort(order[: count + len(front_points)])
    return [points[index] for index in chosen]
