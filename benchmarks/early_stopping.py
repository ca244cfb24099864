"""Early stopping on recorded trials: hypervolume and steps against no stopping, by rule."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from measuring import arguments, emit
from replaying import Judge, Replay, recorded, replayed

from sweep import front
from sweep.records import TrialRecord
from sweep.stopping import Kind, Stopping

RULES: dict[str, Kind] = {
    "by non-domination": "pareto",
    "by strata of target": "stratified",
    "by WER alone (ordinary halving)": "wer",
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="orders of the trials")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--first", type=int, default=45, help="steps of the first rung")
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--growth", type=float, default=1.5)
    args = parser.parse_args()
    trials = recorded()

    def rule(kind: Kind) -> Callable[[], Judge]:
        return lambda: (
            Stopping(kind=kind, first=args.first, keep=args.keep, growth=args.growth).should_stop
        )

    rows = [measured("none", None, trials, args.seeds, args.workers)]
    rows += [measured(n, rule(kind), trials, args.seeds, args.workers) for n, kind in RULES.items()]
    values = {
        "hypervolume_ratio": rows[1]["hypervolume_ratio"],
        "steps_ratio": rows[1]["steps_ratio"],
        "trials": len(trials),
        "seeds": args.seeds,
    }
    emit("early_stopping", rows, values, args)


def measured(
    name: str,
    rule: Callable[[], Judge] | None,
    trials: Sequence[TrialRecord],
    seeds: int,
    workers: int,
) -> dict[str, Any]:
    """Means over the orders; a fresh rule each."""
    whole = [replayed(trials, None, workers=workers, seed=seed) for seed in range(seeds)]
    found = [
        replayed(trials, rule() if rule else None, workers=workers, seed=seed)
        for seed in range(seeds)
    ]
    pairs = list(zip(found, whole, strict=True))
    shares = [covered(a, trials) / covered(b, trials) for a, b in pairs]
    return {
        "name": name,
        "hypervolume_ratio": statistics.mean(shares),
        "lowest": min(shares),
        "steps_ratio": statistics.mean(a.steps / b.steps for a, b in pairs),
        "finished": statistics.mean(len(a.finished) for a in found),
    }


def covered(replay: Replay, trials: Sequence[TrialRecord]) -> float:
    """Hypervolume to the corner of the unpruned model's FLOPs and a WER of 1."""
    corner = front.unpruned_gflops(front.points(trials))
    return front.hypervolume(replay.points, worst_wer=1.0, worst_gflops=corner)


if __name__ == "__main__":
    main()
