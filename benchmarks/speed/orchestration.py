"""What a sweep costs over the same trials in a plain loop: real trials of the demo, one machine.

The loop has as many processes as the sweep has trials side by side, and runs the very trials that
the sweep tried. Teacher and features are made once, before either. Ray's start is not counted, but
shown; drawing the front and MLflow are counted.
"""

import argparse
import json
import multiprocessing
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.lib.measurement import arguments, emit
from core.config.trial import TrialConfig
from core.runtime import TrialDirs
from core.teacher import prepare
from core.trial import run
from sweep.config.sweep import create, parse
from sweep.run import driver, ray_cluster
from sweep.snapshot import load_snapshot

SPACE = """
[sweep]
name = "orchestration"
trials = {trials}

[search]
sampler = "qmc"

[resources]
concurrent = {concurrent}

[trial.corpus]
tokens = "word"
vocabulary = 64

[trial.corpus.demo]
train_utterances = 200
dev_utterances = 40
test_utterances = 40

[trial.teacher]
steps = 20

[trial.pruning]
target_sparsity = {{ uniform = [0.2, 0.8] }}
steps = {steps}

[trial.pruning.l0]
lambda_lr = {{ log_uniform = [0.03, 0.3] }}

[trial.tuning]
steps = {steps}

[trial.runtime]
report_steps = {report_steps}
checkpoint_steps = {report_steps}
"""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--concurrent", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60, help="of search, and again of tuning")
    parser.add_argument("--report-steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="orchestration-") as scratch:
        rows = [measured(Path(scratch) / str(i), args) for i in range(args.repeats)]
    sweep_seconds = statistics.median(row["sweep_seconds"] for row in rows)
    loop_seconds = statistics.median(row["loop_seconds"] for row in rows)
    values = {
        "wall_ratio": sweep_seconds / loop_seconds,
        "seconds_per_trial": (sweep_seconds - loop_seconds) / args.trials,
        "trials": args.trials,
        "concurrent": args.concurrent,
    }
    emit("orchestration", rows, values, args)


def measured(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One sweep, then the same trials in a loop."""
    text = SPACE.format(
        trials=args.trials,
        concurrent=args.concurrent,
        steps=args.steps,
        report_steps=args.report_steps,
    )
    config = parse(text, source="orchestration")
    shared = TrialDirs(
        teacher=folder / "loop" / "teacher",
        features=folder / "loop" / "features",
        trial=folder / "loop" / "trials",
    )
    for _ in prepare(config.space.base, shared):
        pass
    sweep_folder = folder / "sweep"
    create(sweep_folder, config, text)
    shutil.copytree(shared.teacher, sweep_folder / "teacher")
    shutil.copytree(shared.features, sweep_folder / "features")
    row = sweep_times(sweep_folder, args.concurrent)
    records = load_snapshot(sweep_folder).records
    configs = [config.space.trial_config(record.settings) for record in records]
    seconds = loop_seconds(configs, shared, args.concurrent)
    return {
        "name": f"{args.trials} trials, {args.concurrent} side by side",
        "loop_seconds": seconds,
        "ratio": row["sweep_seconds"] / seconds,
        **row,
    }


def sweep_times(folder: Path, concurrent: int) -> dict[str, float]:
    """Seconds until the first trial started, and from there to the end of everything."""
    began = time.time()
    # So many trials side by side as asked for, on whatever cores there are, as in the loop.
    with ray_cluster.connect(cpus=concurrent):
        code = driver.run(folder)
        ended = time.time()
    if code != driver.DONE:
        raise SystemExit(f"the sweep ended with {code}; see {folder}")
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    first = next(event["time"] for event in events if event["event"] == "started")
    return {"start_seconds": first - began, "sweep_seconds": ended - first}


def loop_seconds(configs: list[TrialConfig], shared: TrialDirs, concurrent: int) -> float:
    """The plain loop, in fresh processes, as the sweep's workers are."""
    jobs = [(config, shared, number) for number, config in enumerate(configs)]
    began = time.time()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(concurrent, mp_context=context) as pool:
        list(pool.map(one_trial, jobs))
    return time.time() - began


def one_trial(job: tuple[TrialConfig, TrialDirs, int]) -> None:
    config, shared, number = job
    place = TrialDirs(
        teacher=shared.teacher, features=shared.features, trial=shared.trial / str(number)
    )
    for _ in run(config, place):
        pass


if __name__ == "__main__":
    main()
