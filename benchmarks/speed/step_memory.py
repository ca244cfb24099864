"""The memory of a training step, foretold from shapes alone against measured, in new processes.

A step under gates with a teacher, of three shapes and two sizes of a batch, with and without
`runtime.checkpointing`. Measured is the rise of the process's largest resident size, once with
large blocks of memory mapped one by one (`MALLOC_MMAP_THRESHOLD_=65536`), so that freed ones go
back at once, and once with the heap as it is by default, which keeps them in holes.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.lib.measurement import arguments, emit
from core.config.trial import TrialConfig
from core.conformer.shape import Shape
from core.step_memory import estimate_step_memory, make_largest_stage, noise_batch

SIZES = ("tiny", "small", "medium")
SECONDS = (30.0, 60.0)
MAPPED = {"MALLOC_MMAP_THRESHOLD_": "65536"}
STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.measure:
        size, seconds, is_repeated = args.measure
        print(measured_here(config_of(size, float(seconds), is_repeated=is_repeated == "True")))
        return
    rows = [
        row_of(size, seconds, is_repeated=is_repeated)
        for size in SIZES
        for seconds in SECONDS
        for is_repeated in (False, True)
    ]
    worst = max(abs(row["measured"] / row["foretold"] - 1) for row in rows)
    emit("step_memory", rows, {"worst": worst}, args)


def row_of(size: str, seconds: float, *, is_repeated: bool) -> dict[str, Any]:
    config = config_of(size, seconds, is_repeated=is_repeated)
    shape = shape_of(config)
    memory = estimate_step_memory(config, shape, noise_batch(config, shape, seconds=4.0))
    words = ["--measure", size, str(seconds), str(is_repeated)]
    return {
        "size": size,
        "batch_seconds": seconds,
        "checkpointing": is_repeated,
        "weights": memory.weights,
        "optimizer": memory.optimizer,
        "activations": memory.activations,
        "foretold": memory.peak,
        "measured": measured(words, MAPPED),
        "measured_in_heap": measured(words, {}),
    }


def measured(words: list[str], environment: dict[str, str]) -> int:
    """Measure in a process of its own; the allocator reads its settings at the start."""
    command = [sys.executable, "-m", "benchmarks.speed.step_memory", *words]
    done = subprocess.run(  # noqa: S603 - this file
        command, env=os.environ | environment, capture_output=True, text=True, check=True
    )
    value: int = json.loads(done.stdout.splitlines()[-1])
    return value


def measured_here(config: TrialConfig) -> int:
    """Return by how many bytes this process grows at most, while it makes a stage and steps."""
    # What is loaded at the first step alone is no memory of the step.
    take_steps(config_of("tiny", 4.0, is_repeated=config.runtime.checkpointing))
    before = psutil.Process().memory_info().rss
    CLEAR.write_text("5")  # forget the largest size so far
    take_steps(config)
    lines = [line.split() for line in STATUS.read_text().splitlines()]
    largest = next(int(words[1]) for words in lines if words[0] == "VmHWM:")
    return 1024 * largest - before


def take_steps(config: TrialConfig) -> None:
    shape = shape_of(config)
    stage, batch = make_largest_stage(config, shape), noise_batch(config, shape, seconds=4.0)
    for step in range(2):
        stage.step(batch, step)


def config_of(size: str, seconds: float, *, is_repeated: bool) -> TrialConfig:
    return TrialConfig.parse(
        {
            "model": {"size": size},
            "training": {"batch_seconds": seconds},
            "runtime": {"checkpointing": is_repeated},
        }
    )


def shape_of(config: TrialConfig) -> Shape:
    return Shape.of(config.model, 128)


if __name__ == "__main__":
    main()
