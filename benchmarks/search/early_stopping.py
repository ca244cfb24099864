"""Early stopping on recorded trials: hypervolume and steps against no stopping, by rule.

Beside our rules stands Syne Tune's MOASHA (Schmucker et al., 2021), its own code, where the package
`syne-tune` is installed; it asks for much that nothing else here needs.
"""

import statistics
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks.lib.measurement import arguments, emit
from benchmarks.lib.replay import Judge, Replay, recorded, replayed
from sweep.ledger.records import TrialRecord
from sweep.pareto import front
from sweep.pareto.front import Point
from sweep.search.early_stopping import Kind, Standing, Stopping

RULES: dict[str, Kind] = {
    "by non-domination": "pareto",
    "by strata of target": "stratified",
    "by WER alone (ordinary halving)": "wer",
}
OURS = "by non-domination"
ANY = 1.0
"""The WER up to which the hypervolume is counted: who says nothing has as much."""
GOOD = 0.1
"""A WER up to which the hypervolume is counted a second time: most of the first lies beyond."""
REDUCTIONS = (1.5, 2.0, 3.0)
"""Of MOASHA, each rung keeps one in so many, and lies so many times as far; 3 is its default."""

MakeJudge = Callable[[int], Judge | None]
"""A fresh judge for a seed."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="orders of the trials")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--first", type=int, default=30, help="steps of the first rung")
    parser.add_argument("--keep", type=float, default=0.7)
    parser.add_argument("--growth", type=float, default=2.0)
    args = parser.parse_args()
    trials = recorded()

    def rule(kind: Kind) -> MakeJudge:
        return lambda _: (
            Stopping(kind=kind, first=args.first, keep=args.keep, growth=args.growth).should_stop
        )

    judges: dict[str, MakeJudge] = {"none": lambda _: None}
    judges |= {name: rule(kind) for name, kind in RULES.items()}
    judges |= peers(first=args.first, last=max(trial.curve[-1].step for trial in trials))
    replays = {
        name: [
            replayed(trials, make(seed), workers=args.workers, seed=seed)
            for seed in range(args.seeds)
        ]
        for name, make in judges.items()
    }
    rows = [row(name, found, replays, trials) for name, found in replays.items()]
    ours = next(each for each in rows if each["name"] == OURS)
    values = {
        "hypervolume_ratio": ours["hypervolume_ratio"],
        "of_good_models": ours["of_good_models"],
        "steps_ratio": ours["steps_ratio"],
        "trials": len(trials),
        "seeds": args.seeds,
        "rule": {"first": args.first, "keep": args.keep, "growth": args.growth},
    }
    emit("early_stopping", rows, values, args)


def row(
    name: str,
    found: Sequence[Replay],
    replays: dict[str, list[Replay]],
    trials: Sequence[TrialRecord],
) -> dict[str, Any]:
    """Means over the orders, each against the same order without stopping, and against ours."""
    pairs = list(zip(found, replays["none"], strict=True))

    def shares(worst_wer: float) -> list[float]:
        return [
            covered(a.points(), trials, worst_wer=worst_wer)
            / covered(b.points(), trials, worst_wer=worst_wer)
            for a, b in pairs
        ]

    return {
        "name": name,
        "hypervolume_ratio": statistics.mean(shares(ANY)),
        "lowest": min(shares(ANY)),
        "of_good_models": statistics.mean(shares(GOOD)),
        "steps_ratio": statistics.mean(a.steps / b.steps for a, b in pairs),
        "finished": statistics.mean(len(a.finished) for a in found),
        "ours_at_equal_steps": statistics.mean(
            at_equal_steps(ours, other, trials)
            for ours, other in zip(replays[OURS], found, strict=True)
        ),
    }


def at_equal_steps(ours: Replay, other: Replay, trials: Sequence[TrialRecord]) -> float:
    """Our hypervolume over the other's, when both had spent what the thriftier spent in all."""
    steps = min(ours.steps, other.steps)
    mine, others = (each.points(most_steps=steps) for each in (ours, other))
    return covered(mine, trials, worst_wer=ANY) / covered(others, trials, worst_wer=ANY)


def covered(points: Sequence[Point], trials: Sequence[TrialRecord], *, worst_wer: float) -> float:
    """Hypervolume of points to the corner of a WER and of the FLOPs that the trials began with."""
    corner = front.unpruned_gflops(front.points(trials))
    return front.hypervolume(points, worst_wer=worst_wer, worst_gflops=corner)


def peers(*, first: int, last: int) -> dict[str, MakeJudge]:
    """Syne Tune's MOASHA, where it is installed, with the same first rung as ours."""
    if find_spec("syne_tune") is None:
        return {}
    return {
        f"Syne Tune's MOASHA, reduction {reduction:g}": partial(
            _moasha, first=first, last=last, reduction=reduction
        )
        for reduction in REDUCTIONS
    }


def _moasha(seed: int, *, first: int, last: int, reduction: float) -> Judge:
    from syne_tune.backend.trial_status import Trial  # noqa: PLC0415  # where it is installed
    from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA  # noqa: PLC0415

    np.random.seed(seed)  # noqa: NPY002  # it draws from there
    scheduler = MOASHA(
        config_space={},
        metrics=["wer", "gflops"],
        time_attr="step",
        max_t=last,
        grace_period=first,
        reduction_factor=reduction,
        random_seed=seed,
    )
    known: dict[int, Any] = {}

    def judge(step: int, standing: Standing) -> bool:
        if standing.trial not in known:
            known[standing.trial] = Trial(standing.trial, {}, datetime.now(UTC))
            scheduler.on_trial_add(known[standing.trial])
        result = {"step": step, "wer": standing.wer, "gflops": standing.gflops}
        return str(scheduler.on_trial_result(known[standing.trial], result)) == "STOP"

    return judge


if __name__ == "__main__":
    main()
