"""Which running trials are worth no more steps: compared at equal steps, keeping the whole front.

Successive halving (Jamieson and Talwalkar, 2016; Li et al., 2020) ranks trials at *rungs* and stops
those below a share. Ranked by WER alone it would stop every small model, so trials are ranked by
non-domination in WER and GFLOPs, ties by an epsilon net that spreads over the front (Schmucker et
al., 2021), or by WER among trials of like target. Pure: it knows no clock and no Ray.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import moocore
import numpy as np

from core.config.settings import WarmedTargetSettings
from core.config.trial import TrialConfig

Kind = Literal["pareto", "stratified", "wer"]
"""`wer` is ordinary halving: it loses the front, and is there to be compared with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """A trial's measurements at a rung."""

    trial: int
    wer: float
    gflops: float
    target: float
    """Share that it was asked to remove."""
    is_safe: bool = False
    """It is compared with, but never stopped."""


def first_step(config: TrialConfig) -> int:
    """Returns the earliest step at which trials may be compared: the target has warmed up by then.

    Methods without a warm-up are compared from the same step on as those with its default.
    """
    share = config.pruning.settings(WarmedTargetSettings).warmup_share
    return max(1, round(share * config.pruning.steps))


class Stopping:
    """Remembers how trials stood at each rung, and says which to stop.

    Args:
        kind: by what trials are ranked.
        first: steps at the first rung.
        keep: share of the trials of a rung that go on.
        growth: each rung is so many times the steps of the one before.
        strata: number of groups of like target, for `stratified`.
    """

    def __init__(
        self, *, kind: Kind, first: int, keep: float, growth: float = 2.0, strata: int = 4
    ) -> None:
        self.first = first
        self.keep = keep
        self.growth = growth
        self._rank = RANKINGS[kind]
        self._strata = strata if kind == "stratified" else 1
        self._rungs: dict[int, dict[int, Standing]] = {}

    def rung(self, step: int) -> int | None:
        """The number of the last rung at or before a step, from 0."""
        # first = 100, growth = 2: rungs begin at 100, 200, 400. Step 99 is on none, 100 on rung 0,
        # 399 on rung 1 and 400 on rung 2.
        number, level = -1, float(self.first)
        while level <= step:
            number, level = number + 1, level * self.growth
        return number if number >= 0 else None

    def observe(self, step: int, standing: Standing) -> int | None:
        """Note how a trial stands; the rung's number if the trial is new on it."""
        number = self.rung(step)
        # Only the first report on a rung counts: a later one of the same trial has had more steps
        # than the others were given.
        if number is None or standing.trial in self._rungs.get(number, {}):
            return None
        self._rungs.setdefault(number, {})[standing.trial] = standing
        return number

    def should_stop(self, step: int, standing: Standing) -> bool:
        """Note how a trial stands, and say whether too many are better at equal steps."""
        number = self.observe(step, standing)
        if number is None or standing.is_safe:
            return False
        others = self._alike(self._rungs[number], standing)
        # With keep = 0.5 the first trial on a rung goes on whatever it has; of two, the better one.
        if len(others) * self.keep < 1:
            return False  # too few to say
        # Asynchronous: a trial is compared with those that were here before it. One that was let
        # through early is not stopped when better ones follow.
        return standing.trial not in self._rank(others)[: _count_of_share(len(others), self.keep)]

    def _alike(self, rung: Mapping[int, Standing], standing: Standing) -> list[Standing]:
        """The trials of a rung to compare with: all, or those of like target."""
        everyone = list(rung.values())
        if self._strata == 1:
            return everyone
        stratum = _stratum(standing.target, self._strata)
        return [s for s in everyone if _stratum(s.target, self._strata) == stratum]


def by_wer(standings: Sequence[Standing]) -> list[int]:
    """Trials from the lowest WER to the highest."""
    return [s.trial for s in sorted(standings, key=lambda s: (s.wer, s.gflops, s.trial))]


def by_domination(standings: Sequence[Standing]) -> list[int]:
    """Trials layer by layer, the front first; within a layer, those that spread widest first."""
    values = np.array([(s.wer, s.gflops) for s in standings], dtype=float)
    spread = np.ptp(values, axis=0)
    # WER in fractions and GFLOPs in tens: unscaled, distances would be those of GFLOPs alone.
    scaled = (values - values.min(axis=0)) / np.where(spread > 0, spread, 1.0)
    layers = moocore.pareto_rank(values)
    order: list[int] = []
    for number in np.unique(layers):
        order += _spread([int(i) for i in np.flatnonzero(layers == number)], scaled)
    return [standings[i].trial for i in order]


RANKINGS: dict[Kind, Callable[[Sequence[Standing]], list[int]]] = {
    "pareto": by_domination,
    "stratified": by_wer,
    "wer": by_wer,
}


def _spread(layer: list[int], scaled: np.ndarray) -> list[int]:
    """An epsilon net: both ends first, then always what lies farthest from all taken."""
    # Points (0, 1), (0.5, 0.25), (0.2, 0.3), (1, 0): first the ends (0, 1) and (1, 0), then (0.2,
    # 0.3) at a distance of 0.7 from the nearer end, then (0.5, 0.25) at 0.3 from that. The distance
    # is the larger difference of the two objectives.
    ends = [min(layer, key=lambda i: (*scaled[i], i)), max(layer, key=lambda i: (*scaled[i], -i))]
    taken = list(dict.fromkeys(ends))
    remaining = np.array([i for i in layer if i not in taken], dtype=int)
    gaps = np.full(len(remaining), np.inf)
    for end in taken:
        gaps = np.minimum(gaps, np.abs(scaled[remaining] - scaled[end]).max(axis=1, initial=0.0))
    while len(remaining):
        farthest_index = int(np.argmax(gaps))
        taken.append(int(remaining[farthest_index]))
        remaining, gaps = np.delete(remaining, farthest_index), np.delete(gaps, farthest_index)
        farthest = np.abs(scaled[remaining] - scaled[taken[-1]]).max(axis=1, initial=0.0)
        gaps = np.minimum(gaps, farthest)
    return taken


def _count_of_share(count: int, share: float) -> int:
    # Down, so that 7 trials at a share of 0.5 leave 3; but never none.
    return max(1, int(count * share))


def _stratum(target: float, strata: int) -> int:
    # 4 strata: targets 0.1, 0.25, 0.6 and 1.0 are in groups 0, 1, 2 and 3.
    return min(int(target * strata), strata - 1)
