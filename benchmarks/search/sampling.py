"""How many trials each sampler needs to cover the front, on recorded trials.

Samplers propose points that nobody tried, so WER is interpolated between the recorded ones: radial
basis functions over the searched values, as shares of their ranges, on the logit of the WER. FLOPs
follow from the target alone, as the choice is exact in its budget. How well the interpolation
tells a trial from the others, leaving each out in turn, is printed with the rest.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.interpolate import RBFInterpolator
from scipy.stats import qmc, spearmanr

from benchmarks.lib.measurement import arguments, emit
from benchmarks.lib.replay import recorded, recorded_config
from core.report import Outcome
from sweep.config.distributions import Range
from sweep.config.space import SearchSpace
from sweep.config.sweep import Sampler, SearchConfig, SweepConfig
from sweep.ledger.records import TrialRecord
from sweep.pareto import front
from sweep.search.sampler import TARGET, Params, Sampling
from tests.support.made_outcomes import make_outcome

SAMPLERS: tuple[Sampler, ...] = ("random", "auto", "qmc", "tpe", "nsga2")
POINTS = 4096
"""So many quasi-random points tell what could be reached."""
SMOOTHING = 0.1
"""Recorded trials differ by luck, too: the interpolation need not pass through each."""
LEAST_WER = 1e-3


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=150, help="at most, a sweep")
    parser.add_argument("--share", type=float, default=0.95, help="of the best hypervolume")
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=list(SAMPLERS))
    args = parser.parse_args()
    trials, config = recorded(), recorded_config()
    task = Task.of(trials, config.space)
    wanted = args.share * task.best()
    rows = []
    for sampler in args.samplers:
        counts = [
            task.trials_needed(config, sampler, seed=seed, wanted=wanted, most=args.trials)
            for seed in range(args.seeds)
        ]
        rows.append({"name": sampler, "median": statistics.median(counts), **spread(counts)})
    medians = {row["name"]: row["median"] for row in rows}
    values = {
        "trials_ratio": medians["auto"] / medians["random"],
        "share": args.share,
        "seeds": args.seeds,
        "recorded_trials": len(trials),
        "rank_correlation_left_out": left_out(task),
    }
    print({name: round(value, 3) for name, value in values.items()})
    emit("sampling", rows, values, args)


def spread(counts: Sequence[int]) -> dict[str, float]:
    low, high = np.quantile(counts, [0.25, 0.75])
    return {"quarter": float(low), "three quarters": float(high), "most": max(counts)}


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a sampler plays against: a made-up trial for any point of the space."""

    space: SearchSpace
    shares: np.ndarray
    """Of the recorded trials, (trials, leaves)."""
    logits: np.ndarray
    """Of their WER, (trials,)."""
    gflops: np.ndarray
    control: Outcome

    @classmethod
    def of(cls, trials: Sequence[TrialRecord], space: SearchSpace) -> "Task":
        control = next(t for t in trials if TARGET not in t.params).outcomes[0]
        drawn = [t for t in trials if TARGET in t.params]
        return cls(
            space=space,
            shares=np.array([shares(space, t.params) for t in drawn]),
            logits=np.array([logit(t.outcomes[0].wer) for t in drawn]),
            gflops=np.array([t.outcomes[0].gflops for t in drawn]),
            control=control,
        )

    @cached_property
    def surface(self) -> RBFInterpolator:
        return self.surface_without(None)

    def surface_without(self, number: int | None) -> RBFInterpolator:
        """The logit of the WER over the space, perhaps as if one trial had never been."""
        keep = np.arange(len(self.logits)) != (-1 if number is None else number)
        # Beyond the reach of data a plain mean is the safest guess: degree 0.
        return RBFInterpolator(
            self.shares[keep], self.logits[keep], kernel="linear", degree=0, smoothing=SMOOTHING
        )

    def wers(self, points: np.ndarray) -> np.ndarray:
        """Interpolated WER at points (any, leaves)."""
        return np.asarray(1 / (1 + np.exp(-self.surface(points))))

    def flops(self, points: np.ndarray) -> np.ndarray:
        """GFLOPs, which the target alone decides."""
        column = list(self.space.distributions).index(TARGET)
        order = np.argsort(self.shares[:, column])
        return np.interp(points[:, column], self.shares[order, column], self.gflops[order])

    def outcomes(self, points: np.ndarray) -> list[Outcome]:
        full = self.control.gflops
        return [
            make_outcome(float(wer), float(gflops), flops_sparsity=1 - float(gflops) / full)
            for wer, gflops in zip(self.wers(points), self.flops(points), strict=True)
        ]

    def covered(self, outcomes: Sequence[Outcome]) -> float:
        """Hypervolume to twice the control's WER: models that nobody would take count nothing."""
        points = [
            front.Point(trial=number, outcome=0, result=outcome)
            for number, outcome in enumerate(outcomes)
        ]
        worst = max(2 * self.control.wer, self.control.wer + 0.1)
        return front.hypervolume(points, worst_wer=worst, worst_gflops=self.control.gflops)

    def best(self) -> float:
        points = qmc.Sobol(self.shares.shape[1], rng=0).random(POINTS)
        return self.covered([self.control, *self.outcomes(points)])

    def trials_needed(
        self, config: SweepConfig, sampler: Sampler, *, seed: int, wanted: float, most: int
    ) -> int:
        """Trials until the hypervolume is reached; one more than allowed if it never is."""
        budget = config.sweep.model_copy(update={"seed": seed, "trials": most})
        search = SearchConfig(sampler=sampler)
        sampling = Sampling(self.space, search=search, budget=budget)
        found: list[Outcome] = []
        for number in range(most):
            params = sampling.propose(number)
            found.append(self.outcome(params))
            sampling.observe(
                TrialRecord(number=number, state="finished", params=params, outcomes=(found[-1],))
            )
            if self.covered(found) >= wanted:
                return number + 1
        return most + 1

    def outcome(self, params: Params) -> Outcome:
        if TARGET not in params:
            return self.control
        (outcome,) = self.outcomes(np.array([shares(self.space, params)]))
        return outcome


def left_out(task: Task) -> float:
    """Rank correlation of each trial's WER with what the others say of it."""
    told = [float(task.surface_without(i)(task.shares[[i]])[0]) for i in range(len(task.logits))]
    return float(spearmanr(told, task.logits).statistic)


def shares(space: SearchSpace, params: Mapping[str, Any]) -> list[float]:
    """Where a point lies in the ranges of a space, each from 0 to 1."""
    return [_share(leaf, params[name]) for name, leaf in space.distributions.items()]


def _share(leaf: Any, value: float) -> float:
    assert isinstance(leaf, Range), "the recorded space has ranges only"
    low, high = (math.log(leaf.low), math.log(leaf.high)) if leaf.is_log else (leaf.low, leaf.high)
    return ((math.log(value) if leaf.is_log else value) - low) / (high - low)


def logit(wer: float) -> float:
    share = min(max(wer, LEAST_WER), 1 - LEAST_WER)
    return math.log(share / (1 - share))


if __name__ == "__main__":
    main()
