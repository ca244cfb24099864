"""How often a model is timed, and whether other programs were in the way meanwhile."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from core.evaluation.timer import (
    CpuTimes,
    is_crowded,
    is_spread,
    measure_latency,
    noise,
    pass_seconds,
)
from core.testing import small_model

CPU = torch.device("cpu")
CORES = os.cpu_count() or 1


def counted(*, wall: float, others: float, own: float, cores: int) -> tuple[CpuTimes, CpuTimes]:
    """Counters before and after so many seconds."""
    before = CpuTimes(wall=5.0, busy=1000.0, own=7.0, cores=cores)
    after = CpuTimes(wall=5.0 + wall, busy=1000.0 + others + own, own=7.0 + own, cores=cores)
    return before, after


@pytest.mark.parametrize(
    ("others", "cores", "wanted", "expected"),
    [
        (0.0, 1, 1, False),
        (0.2, 1, 1, False),  # less than a quarter of the one core
        (0.5, 1, 1, True),
        (3.0, 4, 1, False),  # three other trials, a core each
        (3.5, 4, 1, True),
        (1.0, 4, 4, False),  # just the quarter of four
        (1.5, 4, 4, True),
        (1.9, 2, 8, True),  # more threads than cores want no more than all
    ],
)
def test_others_are_in_the_way_once_they_run_on_the_cores_that_a_pass_wants(
    others, cores, wanted, expected
):
    times = counted(wall=1.0, others=others, own=cores - others, cores=cores)

    assert is_crowded(*times, threads=wanted) is expected


def test_a_span_of_few_ticks_says_nothing_of_others():
    times = counted(wall=0.01, others=0.02, own=0.0, cores=2)

    assert not is_crowded(*times, threads=2)


def test_passes_that_mostly_take_longer_than_the_shortest_are_spread():
    assert not is_spread([1.0, 1.1, 1.2, 5.0, 1.1])
    assert is_spread([1.0, 2.0, 2.1, 2.2, 1.9])


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="counters of Linux")
def test_a_latency_taken_beside_busy_programs_says_so():
    spin = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(spin) for _ in range(3 * CORES)]  # noqa: S603
    try:
        found = measure_latency(
            small_model(), utterance_seconds=20.0, repeats=40, device=torch.device("cpu")
        )
    finally:
        for other in others:
            other.kill()
            other.wait()

    assert found.seconds > 0
    assert found.is_busy


class Sleeper(nn.Module):
    """Takes so long, and counts."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.count = seconds, 0

    def forward(self, *_):
        self.count += 1
        time.sleep(self.seconds)


def test_a_fast_model_is_timed_as_often_as_asked_after_two_passes_to_warm_up():
    model = Sleeper(0.0)

    times = pass_seconds({"a": model}, speech=noise(1, 0.1, CPU), repeats=5, device=CPU)

    assert len(times["a"]) == 5
    assert model.count == 7


@pytest.mark.parametrize(("seconds", "counted", "passes"), [(0.3, 1, 1), (0.12, 1, 3)])
def test_a_slow_model_is_timed_within_the_seconds_there_are(seconds, counted, passes):
    model, announced = Sleeper(seconds), []

    times = pass_seconds(
        {"a": model},
        speech=noise(1, 0.1, CPU),
        repeats=50,
        device=CPU,
        most_seconds=0.45,
        announce=announced.append,
    )

    assert len(times["a"]) == counted
    assert model.count == len(announced) <= passes
    assert all(each >= seconds for each in times["a"])
