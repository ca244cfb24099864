"""Latencies of sweeps whose trials ran side by side, against the idle machine's afterwards.

Sweeps of four trials at a time on two cores. Each model's latency is stated three times: as its
worker measured it beside the others, as the sweep measured it again after its last trial, and as
this program measures it when the sweep is gone. Run it alone on the machine.
"""

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib.measurement import arguments, emit
from core import bundle
from core.evaluation.timer import measure_latency
from core.report import Outcome
from sweep.config.sweep import create, load
from sweep.ledger.fast_read import records_in
from sweep.run import driver, ray_cluster

APART = 1.25
"""Ratio of FLOPs from which on latencies must be in order."""
CONCURRENT = 4
REPEATS = 25
SECONDS = 10.0
SPACE = """\
[sweep]
trials = {trials}
seed = {seed}

[resources]
cpus = 1
concurrent = 4

[trial.corpus]
name = "demo"
tokens = "word"
vocabulary = 64

[trial.corpus.demo]
train_utterances = 400
dev_utterances = 60
test_utterances = 60

[trial.model]
size = "{size}"

[trial.teacher]
{teacher}

[trial.pruning]
method = "magnitude"
target_sparsity = {{ uniform = [0.1, 0.9] }}
steps = 0

[trial.tuning]
steps = 30

[trial.training]
batch_seconds = 20.0
"""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--dir", type=Path, default=Path("runs/idle_latencies"))
    parser.add_argument("--sweeps", type=int, default=3)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--size", default="small", help="of the unpruned model")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folders = [args.dir / f"{args.size}-{seed}" for seed in range(args.sweeps)]
    # As on a machine that says it has four cores: two of them must do for four trials.
    with ray_cluster.connect(cpus=CONCURRENT):
        for seed, folder in enumerate(folders):
            if not (folder / "front" / "front.csv").is_file():
                run_sweep(folder, seed, args.size, args.trials, first=folders[0])
    rows = [row_of(folder) for folder in folders]
    worst = max(row["worst"] for row in rows)
    emit("idle_latencies", rows, {"worst": worst, "size": args.size, "trials": args.trials}, args)


def run_sweep(folder: Path, seed: int, size: str, trials: int, *, first: Path) -> None:
    """Run a sweep; all but the first take its teacher."""
    model = first.resolve() / "teacher" / "model"
    teacher = "steps = 100" if folder == first else f'bundle = "{model}"'
    folder.parent.mkdir(parents=True, exist_ok=True)
    space = folder.with_suffix(".toml")
    space.write_text(SPACE.format(trials=trials, seed=seed, size=size, teacher=teacher))
    create(folder, load(str(space)), space.read_text())
    driver.run(folder)


def row_of(folder: Path) -> dict[str, Any]:
    records = [record for record in records_in(folder) if record.state == "finished"]
    outcomes = {record.number: record.outcomes[0] for record in records}
    beside = workers_latencies(folder)
    now = {number: latency_now(folder, number, outcome) for number, outcome in outcomes.items()}
    ratios = [outcome.latency_ms / now[number] for number, outcome in outcomes.items()]
    of_workers = [beside[number] / now[number] for number in outcomes]
    return {
        "sweep": folder.name,
        "models": len(outcomes),
        "worst": max(deviation(ratio) for ratio in ratios),
        "worst_beside": max(deviation(ratio) for ratio in of_workers),
        "in_order": is_in_order([(o.gflops, o.latency_ms) for o in outcomes.values()]),
        "in_order_beside": is_in_order([(o.gflops, beside[n]) for n, o in outcomes.items()]),
        "lowest_ms": min(o.latency_ms for o in outcomes.values()),
        "highest_ms": max(o.latency_ms for o in outcomes.values()),
        "highest_speedup": max(o.speedup or 0.0 for o in outcomes.values()),
    }


def workers_latencies(folder: Path) -> dict[int, float]:
    """What workers measured, by trial, in ms."""
    lines = (folder / "events.jsonl").read_text().splitlines()
    events = [event for event in map(json.loads, lines) if event["event"] == "finished"]
    return {event["trial"]: event["outcomes"][0]["latency_ms"] for event in events}


def latency_now(folder: Path, number: int, outcome: Outcome) -> float:
    model = bundle.load(folder / "trials" / f"{number:04}" / outcome.model).model
    latency = measure_latency(
        model, utterance_seconds=SECONDS, repeats=REPEATS, device=torch.device("cpu")
    )
    return 1000 * latency.seconds


def deviation(ratio: float) -> float:
    """How far a ratio is from 1, to either side: 0.25 for 1.25 and for 0.8."""
    return max(ratio, 1 / ratio) - 1


def is_in_order(points: Sequence[tuple[float, float]]) -> bool:
    """Whether of two models the one of clearly more FLOPs is the slower one."""
    return all(
        (a[0] > b[0]) == (a[1] > b[1])
        for a, b in combinations(points, 2)
        if max(a[0], b[0]) > APART * min(a[0], b[0])
    )


if __name__ == "__main__":
    main()
