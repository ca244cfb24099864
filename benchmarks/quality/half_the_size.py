"""Half the parameters, twice over: with that target alone, and with FLOPs and latency asked for.

The teacher, the teacher tuned on by as many steps, the paper's target, and the same with at least
half of the FLOPs and of the time at batch 1 gone, all with the same total steps. WER is over dev
and test together, in the mean over seeds, with a bootstrap interval over utterances; differences
are paired: to the teacher and to dense. Models are timed when all training is over, each in turn
with the teacher. Trials are kept in --dir, so an interrupted run goes on where it stopped.
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lib.cells import (
    TIMED_SECONDS,
    Cell,
    Errors,
    against,
    base_of,
    cell_of,
    errors_of,
    outcomes_of,
    teacher_of,
    time_share,
    trained,
    training_arguments,
    wer_of,
)
from benchmarks.lib.measurement import arguments, emit

HALF = {"resource": "params", "target_sparsity": 0.5}
FAST = "params and FLOPs and latency"
ROWS: dict[str, dict[str, Any]] = {
    "dense": {"method": "dense"},
    "params only": HALF,
    # Sizes that fill the machine's registers: at others its table is less right.
    FAST: {**HALF, "multiple_of": 8},
}


def main() -> None:
    parser = arguments(__doc__)
    training_arguments(parser, "commands")
    parser.add_argument("--dir", type=Path, default=Path("runs/half_the_size"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="trials side by side")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument(
        "--latency",
        type=float,
        default=0.5,
        help="to remove: its table is right within some percent",
    )
    parser.add_argument("--repeats", type=int, default=25, help="turns in which a model is timed")
    parser.add_argument("--name", default="half_the_size", help="which file --save writes")
    parser.add_argument("--table-only", action="store_true", help="of the trials that are done")
    args = parser.parse_args()
    root = args.dir.resolve()
    cells = list(planned(args))
    if not args.table_only:
        trained(cells, root, args.workers, args.space)
    finished = [cell for cell in cells if cell.is_done(root)]
    config = cells[0].config
    values = {
        "steps": config.pruning.steps + config.tuning.steps,
        "timed_seconds": TIMED_SECONDS,
        "trials": len(finished),
    }
    emit(args.name, tabulated(finished, root, args.repeats), values, args)


def planned(args: argparse.Namespace) -> Iterator[Cell]:
    """Seed by seed, so that whatever is done can be compared."""
    base = base_of(args)
    also = {FAST: {"also": {"flops": 0.5, "latency": args.latency}}}
    for seed in range(args.seeds):
        for name in args.rows:
            pruning = ROWS[name] | also.get(name, {})
            yield cell_of(base, name, {"pruning": pruning}, "", seed)


def tabulated(cells: Sequence[Cell], root: Path, repeats: int) -> list[dict[str, Any]]:
    """One row a target, seeds pooled utterance by utterance."""
    groups: dict[str, list[Path]] = defaultdict(list)
    groups["teacher"] = [teacher_of(root)]
    for cell in cells:
        groups[cell.name] += cell.models(root)
    errors = {name: errors_of(models) for name, models in groups.items()}
    return [
        {
            "name": name,
            "params_removed": removed(groups[name], "params_sparsity"),
            "flops_removed": removed(groups[name], "flops_sparsity"),
            "time_removed": 1 - time_share(root, groups[name], repeats=repeats),
            **wer_of(own),
            **compared(own, errors),
            "seeds": len(groups[name]),
        }
        for name, own in errors.items()
    ]


def compared(own: Errors, errors: dict[str, Errors]) -> dict[str, float]:
    """With the teacher and, where it was trained on, with that."""
    found = against("teacher", own, errors["teacher"])
    return found | (against("dense", own, errors["dense"]) if "dense" in errors else {})


def removed(models: Sequence[Path], key: str) -> float:
    """The share that is gone, in the mean over seeds."""
    return statistics.mean(outcome[key] for outcome in outcomes_of(models))


if __name__ == "__main__":
    main()
