"""Shows that a change of names changed no number: tiny trials of every method, as digests.

    python -m benchmarks.robustness.equal_results --out before.json     # in the tree before
    python -m benchmarks.robustness.equal_results --out after.json      # in the tree after
    python -m benchmarks.robustness.equal_results --compare before.json after.json

Every method runs on a native teacher, on one rank and on two, and on an imported teacher; variants
run what a method's defaults leave out; and a sweep runs through the command line. Of each case the
file holds all numbers that its reports and outcomes hold, to the last bit, and SHA-256 digests of
all weights. Names are left out of the comparison, so a renamed field, state-dict key or file does
not count as a difference; `--names` compares the names, too. Times are left out everywhere.

Run both on one machine, whose last bits are its own; the script itself sets one thread.
"""

import argparse
import dataclasses
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Generator, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import torch

from benchmarks.lib.result_digests import Case, case_of, differences
from benchmarks.lib.tiny_spaces import EQUAL_RESULTS

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # this tree, whichever is installed
MODELS = ROOT.parent / "shared" / "data" / "models"

IMPORT_PATHS = {
    "TrialConfig": ("core.config:TrialConfig", "core.config.trial:TrialConfig"),
    "method_names": ("core.config:method_names", "core.config.methods:method_names"),
    "TrialDirs": ("core.setting:Place", "core.runtime:TrialDirs"),
    "prepare": ("core.teacher:prepare",),
    "run": ("core.trial:run", "core.trial.run:run"),
    "import_model": ("core.deploy.importing.bring:bring", "core.importers.load:import_model"),
    "join_ranks": ("core.ranks:joined", "core.distributed:join_ranks"),
    "open_store": ("core.ranks:open_store", "core.distributed:open_store"),
}
"""Import paths of each name, the old one first: a rename adds its own."""

SWEPT_PARAMS = ("params_searched", "searched", "params")
"""Key of a row of `trials --json` with the values that were drawn, by old and new names."""

OUTCOMES = ("outcomes.json",)
"""File of a finished trial's folder, by old and new names."""

BASE: dict[str, Any] = {
    "seed": 3,
    "corpus": {"demo": {"train_utterances": 30, "dev_utterances": 6, "test_utterances": 6}},
    "pruning": {"steps": 4, "calibration_batches": 2},
    "tuning": {"steps": 4, "dropout": 0.1},
    "training": {"batch_seconds": 16.0},
    "evaluation": {"latency_repeats": 1, "bootstrap_samples": 100},
    "runtime": {"device": "cpu", "report_steps": 2, "checkpoint_steps": 3},
}
NATIVE: dict[str, Any] = {
    "corpus": {"tokens": "word"},
    "model": {
        "blocks": 2,
        "width": 16,
        "inner": 24,
        "heads": 2,
        "channels": 16,
        "frontend_channels": 8,
    },
    "teacher": {"steps": 4},
}
VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # Name: method, shared settings by section, and settings of the method's own.
    "l0 annealed": ("l0", {}, {"gates": "annealed", "shrink_rounds": 2}),
    "l0 straight through": ("l0", {}, {"gates": "straight_through", "start_from": "magnitude"}),
    "l0 several targets": ("l0", {"pruning": {"also": {"params": 0.4}, "repair": "mask"}}, {}),
    "l0 plain tuning": (
        "l0",
        {"distillation": {"layer_weight": 0.0, "matching": "fixed"}, "tuning": {"more_steps": 2}},
        {},
    ),
    "l0 in parts": ("l0", {"training": {"micro_batches": 2}}, {}),
    "constrained by kind": ("constrained", {}, {"constraint": "kind"}),
    "family of three": ("family", {"pruning": {"further_targets": [0.6, 0.7]}}, {}),
    "magnitude of two": ("magnitude", {"pruning": {"further_targets": [0.7]}}, {}),
    "magnitude by sizes": ("magnitude", {"pruning": {"multiple_of": 4, "resource": "params"}}, {}),
    "interctc truncated": ("interctc", {}, {"depth_order": "truncate"}),
    "performer in one block": ("performer", {}, {"linear_blocks": [1]}),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="File of the results; stdout if left out.")
    parser.add_argument("--only", default="", help="Run only cases whose name holds this text.")
    parser.add_argument("--compare", nargs=2, type=Path, help="Two files of results.")
    parser.add_argument("--names", action="store_true", help="Compare names and texts, too.")
    args = parser.parse_args()
    if args.compare:
        before, after = (json.loads(file.read_text()) for file in args.compare)
        lines = list(differences(before, after, with_names=args.names))
        print("\n".join(lines) or f"equal: {len(before['cases'])} cases")
        sys.exit(1 if lines else 0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        results = collect(Path(folder), args.only)
    text = json.dumps(results, indent=1, sort_keys=True)
    if args.out:
        args.out.write_text(text + "\n")
    else:
        print(text)


def resolve(name: str) -> Any:
    """Import what a tree calls this, by whichever of its names the tree has.

    Raises:
        ImportError: if it has none of them.
    """
    for path in IMPORT_PATHS[name]:
        module, _, attribute = path.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"`{name}` must be one of {', '.join(IMPORT_PATHS[name])}; add its new one")


def program() -> str:
    """Returns the module of the command line, by its old or its new name."""
    return "sweep.cli" if (ROOT / "sweep" / "cli.py").is_file() else "sweep.cli.app"


def collect(folder: Path, only: str = "") -> Case:
    """Run all cases in a scratch folder.

    Raises:
        RuntimeError: if a method has no case.
    """
    cases: dict[str, Case] = {}
    begin = time.monotonic()
    for name, case in all_cases(folder, only):
        cases[name] = case
        print(f"{time.monotonic() - begin:5.0f} s  {name}", file=sys.stderr)
    if not only:
        check_coverage(cases, resolve("method_names")())
    return {"cases": cases, "torch": torch.__version__}


def check_coverage(cases: Collection[str], methods: Collection[str]) -> None:
    """Check that every method ran on one rank, on two, and on each imported teacher.

    Raises:
        RuntimeError: naming the cases that are missing.
    """
    groups = ("native", "two ranks", *(archive.stem for archive in MODELS.glob("*.nemo")))
    missing = {f"{group}/{method}" for group in groups for method in methods} - set(cases)
    if missing:
        raise RuntimeError(f"every method must have these cases, too: {', '.join(sorted(missing))}")


def all_cases(folder: Path, only: str) -> Iterator[tuple[str, Case]]:
    """Yield each case's name and results; what several cases share is made first."""
    methods = resolve("method_names")()
    native = folder / "native"
    yield "native/teacher", teacher_case(config_of(NATIVE), native)
    for method in methods:
        yield from selected_case(only, f"native/{method}", config_of(NATIVE, method), native)
    for name, (method, shared, own) in VARIANTS.items():
        config = config_of(_merge(NATIVE, shared), method, own)
        yield from selected_case(only, f"variant/{name}", config, native)
    config = config_of(NATIVE, "l0")
    yield from selected_case(only, "resumed/l0", config, native, interrupt_after=3)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        for method in methods:
            name = f"two ranks/{method}"
            yield from selected_case(only, name, config_of(NATIVE, method), native, other=other)
    for archive in sorted(MODELS.glob("*.nemo")):
        if not any(only in f"{archive.stem}/{method}" for method in methods):
            continue
        imported = folder / archive.stem
        resolve("import_model")(str(archive), imported / "bundle")
        teacher = {
            "corpus": {"case": "lower"},
            "teacher": {"bundle": str(imported / "bundle")},
            "pruning": {"target_sparsity": 0.25},  # of two blocks `interctc` can remove no more
        }
        yield f"{archive.stem}/teacher", teacher_case(config_of(teacher), imported)
        for method in methods:
            yield from selected_case(
                only, f"{archive.stem}/{method}", config_of(teacher, method), imported
            )
    if only in "sweep":
        yield "sweep", sweep_case(folder / "sweep")


def selected_case(
    only: str, name: str, config: Any, folder: Path, **how: Any
) -> Iterator[tuple[str, Case]]:
    """Run a trial if its name holds the text `only`."""
    if only in name:
        yield name, trial_case(config, dirs_in(folder, name), **how)


def config_of(
    sections: Mapping[str, Any], method: str = "l0", own: Mapping[str, Any] | None = None
) -> Any:
    """The configuration of a trial.

    Args:
        sections: What differs from `BASE`.
        method: The pruning method.
        own: Settings of the method's own: in its own table, or where they stood before it had one.
    """
    parse = resolve("TrialConfig").parse
    values = _merge(_merge(BASE, sections), {"pruning": {"method": method}})
    try:
        return parse(_merge(values, {"pruning": {method: own} if own else {}}))
    except ValueError:
        return parse(_merge(values, {"pruning": own or {}}))


def dirs_in(folder: Path, name: str) -> Any:
    """A trial's folders; the fields are filled in their order, whatever they are called."""
    kind = resolve("TrialDirs")
    paths = (folder / "teacher", folder / "features", folder / "trials" / name.replace("/", "-"))
    return kind(**dict(zip((f.name for f in dataclasses.fields(kind)), paths, strict=True)))


def teacher_case(config: Any, folder: Path) -> Case:
    """Prepare speech and teacher."""
    reports = list(resolve("prepare")(config, dirs_in(folder, "none")))
    return case_of(reports, None, folder / "teacher")


def trial_case(
    config: Any,
    dirs: Any,
    *,
    interrupt_after: int = 0,
    other: ProcessPoolExecutor | None = None,
) -> Case:
    """Run a trial to its end.

    Args:
        config: The trial's.
        dirs: Its folders.
        interrupt_after: Reports after which it is ended and begun again, if any.
        other: A process for a second rank, if there is to be one.
    """
    run = resolve("run")
    reports: list[Any] = []
    if interrupt_after:
        doomed = run(config, dirs)
        reports = [next(doomed) for _ in range(interrupt_after)]
        doomed.close()
        torch.manual_seed(999)  # another process would not know this one's random state
    if other is None:
        later, outcomes = finish(run(config, dirs))
    else:
        later, outcomes = run_on_two(config, dirs, other)
    trial = getattr(dirs, dataclasses.fields(dirs)[-1].name)
    return case_of(reports + later, outcomes, trial)


def run_on_two(config: Any, dirs: Any, other: ProcessPoolExecutor) -> tuple[list[Any], Any]:
    """Run a trial on two ranks, the second in another process."""
    store = resolve("open_store")("localhost")
    second = other.submit(_run_second, config, dirs, f"localhost:{store.port}")
    joined = resolve("join_ranks")(rank=0, size=2, store=store, device=torch.device("cpu"))
    with joined as ranks:
        reports, outcomes = finish(resolve("run")(config, dirs, ranks))
        second.result()
    return reports, outcomes


def _run_second(config: Any, dirs: Any, store: str) -> None:
    torch.set_num_threads(1)
    joined = resolve("join_ranks")(rank=1, size=2, store=store, device=torch.device("cpu"))
    with joined as ranks:
        finish(resolve("run")(config, dirs, ranks))


def finish(trial: Generator[Any, None, Any]) -> tuple[list[Any], Any]:
    """All reports of a generator, and what it returns."""
    reports = []
    while True:
        try:
            reports.append(next(trial))
        except StopIteration as stop:
            return reports, stop.value


def sweep_case(folder: Path) -> Case:
    """Run a sweep of five trials, one at a time, through the command line."""
    folder.mkdir()
    (folder / "tiny.toml").write_text(EQUAL_RESULTS)
    command = [sys.executable, "-c", f"from {program()} import main; main()"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def call(*words: str) -> str:
        done = subprocess.run(  # noqa: S603
            [*command, *words], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"`{' '.join(words)}` must work, but: {done.stderr[-2000:]}")
        return done.stdout

    call("run", str(folder / "tiny.toml"), "--dir", str(folder / "runs"))
    listed = json.loads(call("trials", str(folder / "runs"), "--json"))
    rows = next(iter(listed.values())) if isinstance(listed, dict) else listed
    key = next((key for key in SWEPT_PARAMS if key in rows[0]), None)
    if key is None:
        raise RuntimeError(
            f"a row of `trials --json` must have one of {SWEPT_PARAMS}, but has none"
        )
    files = [file for name in OUTCOMES for file in sorted(folder.rglob(name))]
    if len(files) != len(rows):
        raise RuntimeError(f"{len(rows)} trials must leave {OUTCOMES}, but {len(files)} did")
    outcomes = [json.loads(file.read_text()) for file in files]
    return case_of([row[key] for row in rows], outcomes, folder / "runs")


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    table = dict(below)
    for key, value in above.items():
        under = table.get(key)
        if isinstance(under, Mapping) and isinstance(value, Mapping):
            table[key] = _merge(under, value)
        else:
            table[key] = value
    return table


if __name__ == "__main__":
    main()
