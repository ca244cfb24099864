"""Ten thousand recorded trials: how long the commands take, how heavy and smooth the page is.

And what the driver spends on one trial more, beside what it spends when there are a hundred. The
sweep is made first (recorded_sweep.py), which takes minutes; `--dir` keeps it for another time.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.lib.browser import smoothness
from benchmarks.lib.measurement import arguments, emit
from benchmarks.lib.recorded_sweep import grow, make
from benchmarks.lib.tiny_spaces import RECORDED
from core.report import Report
from sweep.config.sweep import SweepConfig, create, open_config, parse
from sweep.ledger.ledger import Ledger
from sweep.report.front_files import write_front
from sweep.run.progress import Progress
from sweep.search.budget import reached_limit
from sweep.search.sampler import Sampling
from sweep.tracking.tracker import Tracker
from tests.support.made_outcomes import make_outcome

PROGRAM = (sys.executable, "-P", "-m", "sweep")
FEW = 100
REPORTS = 4
"""A trial's, on its way."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="keep the sweep there, and take it from there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="many-trials-") as scratch:
        folder = args.dir or Path(scratch) / "many"
        if not folder.exists():
            make(folder, args.trials)
        values, rows = measured(folder, Path(scratch), args)
    emit("many_trials", rows, values, args)


def measured(
    folder: Path, scratch: Path, args: argparse.Namespace
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    looks, cpu = {}, {}
    for name in LOOKS:
        looks[name], cpu[name] = command_seconds(name, folder, args.repeats)
    ways = {"finished": resume_seconds, "one to add": one_more_seconds}
    resumes = {
        name: statistics.median(way(folder, scratch) for _ in range(args.repeats))
        for name, way in ways.items()
    }
    page = scratch / "front.html"
    subprocess.run([*PROGRAM, "pareto", str(folder), "--html", str(page)], check=True)  # noqa: S603
    smooth = smoothness(page)
    few = scratch / "few"
    create(few, parse(RECORDED, source="few"), RECORDED)
    Ledger.create(few, ("wer", "gflops")).close()
    grow(few, FEW, should_copy_runs=False)
    costs = {place.name: driver_costs(place, scratch, args.repeats) for place in (few, folder)}
    # Proposals aside: they are made beside running trials, by another model when there are many.
    small, large = (sum(cost.values()) - cost["sampling"] for cost in costs.values())
    first, last = (cost["sampling"] for cost in costs.values())
    rows = [
        *({"name": name, "seconds": s, "cpu": cpu[name]} for name, s in looks.items()),
        *({"name": f"resume, {name}", "seconds": s, "cpu": ""} for name, s in resumes.items()),
        *(
            {"name": f"one trial of {count}: {part}", "seconds": seconds, "cpu": ""}
            for count, cost in zip((FEW, args.trials), costs.values(), strict=True)
            for part, seconds in cost.items()
        ),
    ]
    values = {
        "trials": args.trials,
        **{f"{name.split()[0]}_seconds": looks[name] for name in ("status", "trials", "pareto")},
        "resume_seconds": max(resumes.values()),
        "page_bytes": page.stat().st_size,
        **smooth,
        "add_ratio": large / small,
        "add_seconds": {str(FEW): small, str(args.trials): large},
        "proposal_seconds": {str(FEW): first, str(args.trials): last},
        "cpu_seconds": cpu,
    }
    return values, rows


LOOKS = ("status", "trials", "pareto", "status --json", "trials --json", "pareto --json")


def command_seconds(name: str, folder: Path, repeats: int) -> tuple[float, float]:
    """Medians of the whole process: on the wall clock, and of the processor."""
    command, *options = name.split()
    walls, cpus = [], []
    for _ in range(repeats):
        before = children_seconds()
        walls.append(seconds(lambda: run(command, str(folder), *options)))
        cpus.append(children_seconds() - before)
    return statistics.median(walls), statistics.median(cpus)


def children_seconds() -> float:
    """Of the processor, by all processes that were waited for."""
    used = os.times()
    return used.children_user + used.children_system


def run(*words: str) -> None:
    subprocess.run([*PROGRAM, *words], check=True, capture_output=True)  # noqa: S603


def seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def resume_seconds(folder: Path, scratch: Path) -> float:
    """A finished sweep, resumed to its end."""
    other = scratch / "finished"
    shutil.copytree(folder, other)
    run("resume", str(other))  # once, for what is noted of a changed program
    taken = seconds(lambda: run("resume", str(other)))
    shutil.rmtree(other)
    return taken


def one_more_seconds(folder: Path, scratch: Path) -> float:
    """From the command until the one trial that is added has started; Ray's start included."""
    other = scratch / "more"
    shutil.copytree(folder, other)
    began = time.time()
    with subprocess.Popen(  # noqa: S603
        [*PROGRAM, "extend", str(other), "--trials", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        process.wait()
    lines = (other / "events.jsonl").read_text().splitlines()
    started = [e["time"] for e in map(json.loads, lines) if e["event"] == "started"]
    shutil.rmtree(other)
    return float(started[-1]) - began


def driver_costs(folder: Path, scratch: Path, repeats: int) -> dict[str, float]:
    """Seconds that the driver spends on one trial, by what it does; means of some trials."""
    other = scratch / f"{folder.name}-costs"
    shutil.copytree(folder, other, ignore=shutil.ignore_patterns("mlartifacts", "trials"))
    config = open_config(other).with_budget(trials=1_000_000, hours=1e6)
    ledger = Ledger.open(other)
    sampling = Sampling(config.space, search=config.search, budget=config.sweep)
    for record in ledger.records():
        sampling.observe(record)
    tracker = Tracker(other, config.sweep.name)
    tracker.open_sweep(config.toml(), {})
    progress = Progress("many", len(ledger), records=ledger.records(), console=_nowhere())
    spent: dict[str, float] = {}
    for _ in range(4 * repeats):
        for part, cost in _one_trial(ledger, sampling, tracker, progress, config).items():
            spent[part] = spent.get(part, 0.0) + cost / (4 * repeats)
    draw = seconds(lambda: write_front(ledger.records(), scratch / "drawn", title="many"))
    # While trials run it is drawn when 5 % of the time allow it, whatever it takes.
    spent["front, once a segment"] = draw / len(ledger)
    tracker.close()
    ledger.close()
    shutil.rmtree(other)
    return spent


def _nowhere() -> Any:
    from io import StringIO  # noqa: PLC0415

    from rich.console import Console  # noqa: PLC0415

    return Console(file=StringIO())


def _one_trial(
    ledger: Ledger, sampling: Sampling, tracker: Tracker, progress: Progress, config: SweepConfig
) -> Mapping[str, float]:
    """One trial from proposal to end, timed by part."""
    clock: dict[str, float] = {}

    def timed(part: str, call: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = call()
        clock[part] = clock.get(part, 0.0) + time.perf_counter() - began
        return result

    number = len(ledger)
    timed("limits", lambda: reached_limit(ledger.records(), config))
    params = timed("sampling", lambda: sampling.propose(number))
    timed("ledger", lambda: ledger.add(params, config.space.distributions))
    record = timed("ledger", lambda: ledger.start(number))
    run_id = timed("MLflow", lambda: tracker.open_trial(record))
    timed("ledger", lambda: ledger.track(number, run_id))
    timed("terminal", lambda: progress.show_trial(record))
    for place in range(REPORTS):
        report = Report(stage="search", step=place + 1, total_steps=REPORTS, wer=0.5, gflops=0.01)
        timed("ledger", lambda: ledger.advance(number, report))  # noqa: B023
        timed("MLflow", lambda: tracker.log_reports(run_id, [report]))  # noqa: B023
        timed("terminal", lambda: progress.show_report(number, report))  # noqa: B023
    done = timed("ledger", lambda: ledger.finish(number, [make_outcome(0.2, 0.005)]))
    timed("sampling", lambda: sampling.observe(done))
    timed("MLflow", lambda: tracker.finish_trial(done))
    timed("terminal", lambda: progress.show_trial(done))
    return clock


if __name__ == "__main__":
    main()
