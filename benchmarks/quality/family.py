"""A family of sizes from one run, beside a trial of each size alone.

One run of `family` trains all sizes together; `l0` searches and tunes each by itself, from the same
teacher. WER is over dev and test together, mean over seeds, with a bootstrap interval over
utterances; differences are paired. Steps are optimizer steps: one of the family's trains several
sizes, so seconds are told beside them: of training alone, from the speed that trials report, under
whatever load --workers makes. Trials are kept in --dir: an interrupted run goes on.
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from benchmarks.lib.cells import (
    Cell,
    against,
    cell_of,
    errors_of,
    outcomes_of,
    place_of,
    teacher_of,
    trained,
    wer_of,
)
from benchmarks.lib.measurement import arguments, emit
from core.data.batching import TrainBatches
from core.data.prepare import open_speech
from core.training import checkpoint
from core.training.setup import CHECKPOINTS
from sweep.config.sweep import load

FAMILY, ALONE = "family", "separate"
BATCHES = 100
"""So many tell how much speech a step has."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--space", default="commands", help="a search space: its fixed values")
    parser.add_argument("--dir", type=Path, default=Path("runs/family"))
    parser.add_argument("--name", default="family", help="under which results are kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="trials side by side")
    parser.add_argument("--removed", nargs="+", type=float, default=[0.3, 0.5, 0.6, 0.7, 0.8])
    parser.add_argument("--search-steps", type=int, default=250, help="of a separate trial")
    parser.add_argument("--tuning-steps", type=int, default=250, help="of a separate trial")
    parser.add_argument("--family-search", type=int, default=600)
    parser.add_argument("--family-tuning", type=int, default=80, help="of each of its sizes")
    parser.add_argument("--table-only", action="store_true", help="of the trials that are done")
    args = parser.parse_args()
    root = args.dir.resolve()
    cells = list(planned(args))
    if not args.table_only:
        trained(cells, root, args.workers)
    finished = [cell for cell in cells if cell.is_done(root)]
    steps = {
        "steps_of_one_trial": args.search_steps + args.tuning_steps,
        "steps_of_the_family": args.family_search + args.family_tuning * len(args.removed),
    }
    emit(args.name, tabulated(finished, root), {**steps, "trials": len(finished)}, args)


def planned(args: argparse.Namespace) -> Iterator[Cell]:
    """Seed by seed, the family first."""
    base = load(args.space).space.base.model_dump()
    every = args.search_steps + args.tuning_steps
    base["runtime"] |= {"report_steps": every, "checkpoint_steps": 100, "threads": 1}
    for seed in range(args.seeds):
        sizes = {"target_sparsity": args.removed[0], "further_targets": args.removed[1:]}
        pruning = {"method": "family", "steps": args.family_search, **sizes}
        tuning = {"steps": args.family_tuning}
        yield cell_of(base, FAMILY, {"pruning": pruning, "tuning": tuning}, "all", seed)
        for removed in args.removed:
            pruning = {"method": "l0", "steps": args.search_steps, "target_sparsity": removed}
            tuning = {"steps": args.tuning_steps}
            overrides = {"pruning": pruning, "tuning": tuning}
            yield cell_of(base, ALONE, overrides, f"{100 * removed:g}", seed)


def tabulated(cells: list[Cell], root: Path) -> list[dict[str, Any]]:
    """One row a size, seeds pooled utterance by utterance.

    Steps and seconds of the family are those of its one run, whatever the size; those of the
    separate trial are of that size alone.
    """
    models: dict[tuple[str, float], list[Path]] = defaultdict(list)
    spent: dict[tuple[str, float], list[tuple[int, float]]] = defaultdict(list)
    for cell in cells:
        for model, outcome in zip(cell.models(root), outcomes_of(cell.models(root)), strict=True):
            key = cell.name, outcome["target_sparsity"]
            models[key].append(model)
            spent[key].append(training_of(cell, root))
    targets = sorted({t for name, t in models if name == FAMILY and (ALONE, t) in models})
    return [
        {
            "name": f"{100 * target:g} % removed",
            **compared(models[FAMILY, target], models[ALONE, target], teacher_of(root)),
            **medians("", spent[FAMILY, target]),
            **medians(f"{ALONE}_", spent[ALONE, target]),
            "seeds": len(models[FAMILY, target]),
        }
        for target in targets
    ]


def compared(family: list[Path], separate: list[Path], teacher: Path) -> dict[str, Any]:
    """A size of the family beside the same size from a trial of its own, and the teacher."""
    own, other = errors_of(family), errors_of(separate)
    difference = against(ALONE, own, other)
    return {
        **wer_of(own),
        **{f"{ALONE}_{key}": value for key, value in wer_of(other).items()},
        **difference,
        "is_no_worse": difference[f"to_{ALONE}_low"] <= 0,
        **against("teacher", own, errors_of([teacher])),
    }


def medians(prefix: str, spent: list[tuple[int, float]]) -> dict[str, float]:
    """Of seeds, one of which may have stood still for an hour."""
    return {
        f"{prefix}steps": statistics.median(steps for steps, _ in spent),
        f"{prefix}seconds": statistics.median(seconds for _, seconds in spent),
    }


def training_of(cell: Cell, root: Path) -> tuple[int, float]:
    """Steps of a trial, and seconds that they took, from what it reported of its speed."""
    place = place_of(root, cell.folder)
    newest = checkpoint.load_newest(place.trial / CHECKPOINTS)
    assert newest is not None, "a trial that is done keeps its last checkpoint"
    speech = open_speech(place.features).train
    batches = TrainBatches(speech, cell.config.training.batch_seconds, cell.config.seed)
    a_step = statistics.mean(batch.seconds for batch in islice(batches, BATCHES))
    speeds = {report["step"]: report["audio_seconds_per_second"] for report in newest["reports"]}
    seconds = sum(
        (step - before) * a_step / speeds[step] for before, step in pairwise([0, *sorted(speeds)])
    )
    return max(speeds), seconds


if __name__ == "__main__":
    main()
