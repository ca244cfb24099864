"""The paper's claim in our terms: its method, ablations and baselines at equal steps.

Every row is trained with the same total steps from the same teacher, several seeds each; WER is
over dev and test together, intervals by a bootstrap over utterances, differences paired: to the
teacher, to dense, and to L0 at the same target. Speed-ups are measured when all training is over,
each model side by side with the teacher. Trials are kept in --dir, so an interrupted run goes on
where it stopped.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.lib.cells import (
    Cell,
    against,
    cell_of,
    errors_of,
    outcomes_of,
    teacher_of,
    time_share,
    trained,
    wer_of,
)
from benchmarks.lib.measurement import arguments, emit
from sweep.config.sweep import load

UNTAUGHT = {"distillation": {"logit_weight": 0.0, "layer_weight": 0.0}}
METHODS: dict[str, dict[str, Any]] = {
    "l0": {"pruning": {"method": "l0"}},
    "l0 without distillation": {"pruning": {"method": "l0"}, **UNTAUGHT},
    "magnitude": {"pruning": {"method": "magnitude"}},
    "uniform": {"pruning": {"method": "uniform"}},
    "random": {"pruning": {"method": "random"}},
    "scratch": {"pruning": {"method": "scratch"}},
}
TARGETS = (
    ("flops", 0.5),
    ("params", 0.5),
    ("flops", 0.75),
    ("flops", 0.9),
    ("flops", 0.95),
)
LATENCY_REPEATS = 15


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--space", default="commands", help="a search space: its fixed values")
    parser.add_argument("--dir", type=Path, default=Path("runs/paper_claim"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="trials side by side")
    parser.add_argument("--search-steps", type=int, default=200)
    parser.add_argument("--tuning-steps", type=int, default=200)
    parser.add_argument("--tuning-rate", type=float, default=6e-4, help="its peak")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--removed", nargs="+", type=float, help="only these shares")
    parser.add_argument("--table-only", action="store_true", help="of the trials that are done")
    args = parser.parse_args()
    root = args.dir.resolve()
    cells = list(planned(args))
    if not args.table_only:
        trained(cells, root, args.workers)
    finished = [cell for cell in cells if cell.is_done(root)]
    values = {
        "steps": args.search_steps + args.tuning_steps,
        "tuning_rate": args.tuning_rate,
        "trials": len(finished),
    }
    emit(root.name, tabulated(finished, root), values, args)


def planned(args: argparse.Namespace) -> Iterator[Cell]:
    """Seed by seed and target by target, so that whatever is done can be compared."""
    base = load(args.space).space.base.model_dump()
    base["pruning"]["steps"], base["tuning"]["steps"] = args.search_steps, args.tuning_steps
    base["tuning"]["learning_rate"] = args.tuning_rate
    every = args.search_steps + args.tuning_steps
    base["runtime"] |= {"report_steps": every, "checkpoint_steps": 100, "threads": 1}
    for seed in range(args.seeds):
        yield cell_of(base, "dense", {"pruning": {"method": "dense"}}, "", seed)
        for resource, sparsity in TARGETS:
            if args.removed and sparsity not in args.removed:
                continue
            target = f"{round(100 * sparsity)} % {resource}"
            for name in args.methods:
                overrides = METHODS[name]
                wanted = {"resource": resource, "target_sparsity": sparsity}
                merged = {**overrides, "pruning": {**overrides["pruning"], **wanted}}
                yield cell_of(base, name, merged, target, seed)


def tabulated(cells: list[Cell], root: Path) -> list[dict[str, Any]]:
    """One row a name and target, seeds pooled utterance by utterance."""
    groups: dict[tuple[str, str], list[Path]] = defaultdict(list)
    groups["teacher", ""] = [teacher_of(root)]
    for cell in cells:
        groups[cell.name, cell.target] += cell.models(root)
    errors = {key: errors_of(models) for key, models in groups.items()}
    speedups = {
        key: 1 / time_share(root, models, repeats=LATENCY_REPEATS) for key, models in groups.items()
    }
    return [
        {
            "name": name,
            "target": target,
            **outcome_of(groups[name, target]),
            "speedup": speedups[name, target],
            **wer_of(own),
            **against("teacher", own, errors["teacher", ""]),
            **against("dense", own, errors.get(("dense", ""), own)),
            **against("l0", own, errors.get(("l0", target), own)),
            "seeds": len(groups[name, target]),
        }
        for (name, target), own in errors.items()
    ]


def outcome_of(models: list[Path]) -> dict[str, float]:
    """What the models are, in the mean over seeds."""
    reports = list(outcomes_of(models))

    def mean(key: str) -> float:
        return sum(outcome[key] for outcome in reports) / len(reports)

    return {
        "params": round(mean("params")),
        "gflops": mean("gflops"),
        "params_removed": mean("params_sparsity"),
        "flops_removed": mean("flops_sparsity"),
    }


if __name__ == "__main__":
    main()
