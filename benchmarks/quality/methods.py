"""All methods on one model, at equal data, equal steps and equal budgets: WER, and what it took.

One search serves all budgets of a method that orders units for any; others search for each. WER is
over dev and test together, in the mean over seeds, with a bootstrap interval over utterances, and
against `l0` at the same budget pair by pair. What a search takes is measured when all training is
over, one method after the other, each in a process of its own: seconds, the process's largest
memory, and the data that it touched; models of a latency are timed then, each in turn with the
teacher. Trials are kept in --dir, so an interrupted run goes on where it stopped; with --packed the
errors of their models are also kept in a file, which another machine goes on from.
"""

import argparse
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from benchmarks.lib.cells import (
    Cell,
    Errors,
    against,
    base_of,
    cell_of,
    errors_of,
    outcomes_of,
    place_of,
    teacher_of,
    time_share,
    trained,
    training_arguments,
    wer_of,
)
from benchmarks.lib.measurement import arguments, emit
from benchmarks.lib.packed_cells import pack_errors, unpack_errors
from core.config.methods import method_names, settings_class
from core.config.pruning import Resource
from core.config.trial import TrialConfig
from core.runtime import TrialDirs
from core.training.loop import fit
from core.training.method import load_method
from core.trial import open_trial

VARIANTS: dict[str, dict[str, Any]] = {
    "l0 straight through": {"method": "l0", "l0": {"gates": "straight_through"}},
    "l0 annealed": {"method": "l0", "l0": {"gates": "annealed"}},
    "l0 from magnitude": {"method": "l0", "l0": {"start_from": "magnitude"}},
    "l0 from numerical": {"method": "l0", "l0": {"start_from": "numerical"}},
    "l0 from ld": {"method": "l0", "l0": {"start_from": "ld"}},
    "l0 from mope": {"method": "l0", "l0": {"start_from": "mope"}},
    "l0 from obs": {"method": "l0", "l0": {"start_from": "obs"}},
    "l0 from obs, sequential": {
        "method": "l0",
        "repair": "sequential",
        "l0": {"start_from": "obs"},
    },
    "l0 gates faster": {"method": "l0", "l0": {"gate_travel": 50.0}},
    "l0 longer warm-up": {"method": "l0", "l0": {"warmup_share": 0.6}},
    "l0 in three rounds": {"method": "l0", "l0": {"shrink_rounds": 3}},
    "l0 weights faster": {"method": "l0", "l0": {"learning_rate": 2e-3}},
    "l0 from mope, faster": {"method": "l0", "l0": {"start_from": "mope", "learning_rate": 2e-3}},
}
"""Rows that are a method with some of its settings otherwise."""
REPAIRS: dict[str, dict[str, Any]] = {
    f"{method}, {repair}": {"method": method, "repair": repair}
    for method in ("obs", "ld", "numerical", "magnitude", "mope", "l0")
    for repair in ("none", "mask", "ls", "sequential")
}
"""Rows that are a method with another repair."""
TABLES: dict[str, dict[str, Any]] = {
    "obs measured": {"method": "obs", "repair": "sequential", "obs": {"tables": "measured"}},
    "obs measured, 16 levels": {
        "method": "obs",
        "repair": "sequential",
        "obs": {"tables": "measured", "levels": 16},
    },
}
"""Rows that are `obs` with another kind of sensitivity tables."""
OTHERS = VARIANTS | REPAIRS | TABLES
AGAINST = "l0"
MEBI = 2**20
TIMES = 15
"""Turns in which a model is timed."""


def main() -> None:
    parser = arguments(__doc__)
    training_arguments(parser, "methods")
    parser.add_argument("--dir", type=Path, default=Path("runs/methods_table"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0, help="of the teacher and the trials")
    parser.add_argument("--teachers", action="store_true", help="a teacher of its own a seed")
    parser.add_argument("--workers", type=int, default=2, help="trials side by side")
    parser.add_argument("--resource", choices=get_args(Resource), default="flops")
    parser.add_argument(
        "--removed", nargs="+", type=float, default=[0.3, 0.5, 0.7], help="shares of the resource"
    )
    rows = [*method_names(), *OTHERS]
    parser.add_argument("--methods", nargs="+", choices=rows, default=method_names())
    parser.add_argument("--variants", action="store_true", help="those of l0, too")
    parser.add_argument("--name", default="methods", help="which file under results/ --save writes")
    parser.add_argument("--no-costs", action="store_true", help="of searches, each run once more")
    parser.add_argument("--packed", type=Path, help="a .tar.xz of finished trials' errors")
    parser.add_argument("--table-only", action="store_true", help="of the trials that are done")
    args = parser.parse_args()
    cells = list(planned(args))
    roots = {cell.seed: root_of(args, cell.seed) for cell in cells}
    if args.packed and args.packed.is_file():
        unpack_errors(args.packed, args.dir)
    for root in () if args.table_only else dict.fromkeys(roots.values()):
        own = [cell for cell in cells if roots[cell.seed] == root]
        if not all(cell.is_done(root) for cell in own):
            trained(own, root, args.workers, args.space)
        if args.packed:
            pack_errors(args.dir, args.packed)
    finished = [(cell, roots[cell.seed]) for cell in cells if cell.is_done(roots[cell.seed])]
    config = cells[0].config
    values = {
        "steps": config.pruning.steps + config.tuning.steps,
        "resource": args.resource,
        "targets": args.removed,
        "trials": len(finished),
    }
    emit(args.name, tabulated(finished, args), values, args)


def root_of(args: argparse.Namespace, seed: int) -> Path:
    """Where a seed's trials and their teacher are."""
    root: Path = args.dir.resolve()
    return root / f"teacher-{seed}" if args.teachers else root


def planned(args: argparse.Namespace) -> Iterator[Cell]:
    """Seed by seed, so that whatever is done can be compared."""
    base = base_of(args)
    base["pruning"]["resource"] = args.resource
    base["pruning"]["repair"] = "ls"  # of rows that name no other
    names = dict.fromkeys([*args.methods, *(VARIANTS if args.variants else ())])
    counted = "" if args.resource == "flops" else f" {args.resource}"
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for name in names:
            own = OTHERS.get(name, {"method": name})
            if name == "acip":  # a curve must reach as far as it is cut
                own = {**own, "acip": {"smallest": smallest(base, 1 - max(args.removed))}}
            for targets in searches(own["method"], args.removed):
                shares = {"target_sparsity": targets[0], "further_targets": list(targets[1:])}
                said = " ".join(map(percent, targets)) + counted
                yield cell_of(base, name, {"pruning": {**own, **shares}}, said, seed)


def smallest(base: Mapping[str, Any], most: float) -> float:
    """The smallest size of `acip`: the base's, or less."""
    table = base["pruning"].get("acip", {})
    default = settings_class("acip").model_fields["smallest"].default
    return min(table.get("smallest", default), most)


def searches(method_name: str, removed: Sequence[float]) -> list[tuple[float, ...]]:
    """Which budgets one search of a method serves."""
    first, *further = removed
    pruning = {"method": method_name, "target_sparsity": first, "further_targets": further}
    served = load_method(method_name).targets(TrialConfig.parse({"pruning": pruning}))
    if served == (0.0,):
        return [served]
    return [served] if len(served) == len(removed) else [(target,) for target in removed]


def percent(share: float) -> str:
    return f"{round(100 * share, 1):g}"


def tabulated(cells: list[tuple[Cell, Path]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a method and budget, of cells with the folders in which they are."""
    groups: dict[tuple[str, float], list[Path]] = defaultdict(list)
    roots = dict.fromkeys(root for _, root in cells) or [root_of(args, args.first_seed)]
    groups["teacher", 0.0] = [teacher_of(root) for root in roots]
    examples: dict[str, tuple[Cell, Path]] = {}
    for cell, root in cells:
        examples.setdefault(cell.name, (cell, root))
        for model, outcome in zip(cell.models(root), outcomes_of(cell.models(root)), strict=True):
            groups[cell.name, outcome["target_sparsity"]].append(model)
    errors = {key: errors_of(models) for key, models in groups.items()}
    costed = {} if args.no_costs else examples
    costs = {name: cost_of(cell.config, root) for name, (cell, root) in costed.items()}
    return [
        {
            "name": name,
            "target": f"{percent(target)} % {args.resource}" if target else "",
            **realised(groups[name, target]),
            **(
                timed(root_of(args, args.first_seed), groups[name, target])
                if args.resource == "latency"
                else {}
            ),
            **wer_of(own),
            **compared(name, target, errors),
            **costs.get(name, {}),
            "seeds": len(groups[name, target]),
        }
        for (name, target), own in errors.items()
    ]


def timed(root: Path, models: list[Path]) -> dict[str, float]:
    return {"time_removed": 1 - time_share(root, models, repeats=TIMES)}


def compared(name: str, target: float, errors: dict[tuple[str, float], Errors]) -> dict[str, float]:
    own = errors[name, target]
    return {
        **against("teacher", own, errors["teacher", 0.0]),
        **against(AGAINST, own, errors.get((AGAINST, target), own)),
    }


def realised(models: list[Path]) -> dict[str, float]:
    """What the models are, in the mean over seeds."""
    told = [o for o in outcomes_of(models) if "flops_sparsity" in o]
    return {
        key: statistics.mean(outcome[key] for outcome in told) if told else 0.0
        for key in ("gflops", "flops_sparsity", "params_sparsity")
    }


# ---- what a search takes ----


def cost_of(config: TrialConfig, root: Path) -> dict[str, Any]:
    """Measured in a fresh process, as memory once taken is not always given back."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_cost, (config, root))


def _cost(config: TrialConfig, root: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="search-") as scratch:
        shared = place_of(root, "none")
        place = TrialDirs(teacher=shared.teacher, features=shared.features, trial=Path(scratch))
        trial = open_trial(config, place)
        # Without the folder in which trials have left their tables: these are part of the search.
        context = replace(trial.ctx, shared=None).restricted_to(trial.method.needs)
        began = time.perf_counter()
        search = trial.method.search(context)
        if search is not None:
            for _ in fit(search, trial.train_run(config, search.steps), resume=None):
                pass
        trial.method.search_result(context, search)
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEBI
    needs = "labels" if "labels" in trial.method.needs else next(iter(trial.method.needs), "none")
    return {"search_seconds": seconds, "peak_mib": peak, "needs": needs}


if __name__ == "__main__":
    main()
