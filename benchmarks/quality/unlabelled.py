"""Half of the FLOPs with less and less of the training data: its words, its audio, none of it.

One teacher, trained once on transcripts. Then `l0` at half the FLOPs: on the transcripts; on what
the teacher hears in the same audio; on the teacher's outputs and layers alone; and, without any
audio, methods that look at the weights and neither repair nor tune. Dev and test keep their
transcripts: WER is over both together, in the mean over seeds, with a bootstrap interval over
utterances; differences are paired, to the teacher and to `transcripts`. Trials are kept in --dir,
so an interrupted run goes on where it stopped.
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lib.cells import (
    Cell,
    against,
    cell_of,
    errors_of,
    measure,
    place_of,
    teacher_of,
    trained,
    wer_of,
)
from benchmarks.lib.measurement import arguments, emit
from core import bundle
from core.one_shot.by_weights import config_of, prune_bundle, remaining
from sweep.config.sweep import load

AGAINST = "transcripts"
HALF = {"resource": "flops", "target_sparsity": 0.5}
DISTILLED = {"distillation": {"task_weight": 0.0}}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    AGAINST: ("labelled", {}),
    "transcripts, distillation only": ("labelled", DISTILLED),
    "teacher's text": ("heard", {}),
    "teacher's text, distillation only": ("heard", DISTILLED),
}
"""Whose words the training speech has, which is also a folder, and what else differs."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--space", default="commands", help="a search space: its fixed values")
    parser.add_argument("--dir", type=Path, default=Path("runs/unlabelled"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="trials side by side")
    parser.add_argument("--teacher-steps", type=int, default=0, help="instead of the space's")
    parser.add_argument("--steps", type=int, default=0, help="of search and of tuning, likewise")
    parser.add_argument("--name", default="unlabelled", help="which file --save writes")
    parser.add_argument("--table-only", action="store_true", help="of the trials that are done")
    args = parser.parse_args()
    root = args.dir.resolve()
    cells = list(planned(args, root))
    if not args.table_only:
        for words in ("labelled", "heard"):  # the first makes the teacher that the second hears by
            mine = [cell for cell in cells if ROWS[cell.name][0] == words]
            trained(mine, root / words, args.workers)
        cut_by_weights(root / "labelled")
    finished = [cell for cell in cells if cell.is_done(root / ROWS[cell.name][0])]
    config = cells[0].config
    values = {
        "steps": config.pruning.steps + config.tuning.steps,
        "target": HALF["target_sparsity"],
        "trials": len(finished),
    }
    emit(args.name, tabulated(finished, root), values, args)


def planned(args: argparse.Namespace, root: Path) -> Iterator[Cell]:
    """Seed by seed, so that whatever is done can be compared."""
    base = load(args.space).space.base.model_dump()
    base["pruning"] |= {**HALF, **({"steps": args.steps} if args.steps else {})}
    base["tuning"] |= {"steps": args.steps} if args.steps else {}
    base["teacher"] |= {"steps": args.teacher_steps} if args.teacher_steps else {}
    every = base["pruning"]["steps"] + base["tuning"]["steps"]
    base["runtime"] |= {"report_steps": every, "checkpoint_steps": 100, "threads": 1}
    heard = {
        "corpus": {"labels": "teacher"},
        "teacher": {"bundle": str(teacher_of(root / "labelled"))},
    }
    for seed in range(args.seeds):
        for name, (words, overrides) in ROWS.items():
            own = {**overrides, **(heard if words == "heard" else {})}
            yield cell_of(base, name, own, "", seed)


def cut_by_weights(root: Path) -> None:
    """The models that no speech was needed for; those that are there stay."""
    for method in remaining():
        model = by_weights(root, method)
        if not bundle.is_whole(model):
            prune_bundle(config_of(teacher_of(root), {"method": method, **HALF}), model)
        measure(root, model)


def by_weights(root: Path, method: str) -> Path:
    return place_of(root, f"no-speech-{method}").trial / "model"


def tabulated(cells: Sequence[Cell], root: Path) -> list[dict[str, Any]]:
    """One row a kind of training data, seeds pooled utterance by utterance."""
    groups: dict[str, list[Path]] = defaultdict(list)
    groups["teacher"] = [teacher_of(root / "labelled")]
    for cell in cells:
        groups[cell.name] += cell.models(root / ROWS[cell.name][0])
    for method in remaining():
        model = by_weights(root / "labelled", method)
        if bundle.is_whole(model):
            groups[f"no speech, {method}"] = [model]
    errors = {name: errors_of(models) for name, models in groups.items()}
    return [
        {
            "name": name,
            "flops_removed": removed(groups[name]),
            **wer_of(own),
            **against("teacher", own, errors["teacher"]),
            **against(AGAINST, own, errors.get(AGAINST, own)),
            "seeds": len(groups[name]),
        }
        for name, own in errors.items()
    ]


def removed(models: Sequence[Path]) -> float:
    """The share of FLOPs that is gone, in the mean over seeds."""
    reports = [bundle.load(model).report for model in models]
    told = [report.get("outcome") or report["pruned"] for report in reports]
    return statistics.mean(values["flops_sparsity"] for values in told)


if __name__ == "__main__":
    main()
