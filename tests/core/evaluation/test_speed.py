"""A latency says whether other programs were in its way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core.evaluation.speed import CpuTimes, is_crowded, is_spread, measured_latency
from core.testing import small_model

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

    assert is_crowded(*times, wanted=wanted) is expected


def test_a_span_of_few_ticks_says_nothing_of_others():
    times = counted(wall=0.01, others=0.02, own=0.0, cores=2)

    assert not is_crowded(*times, wanted=2)


def test_passes_that_mostly_take_longer_than_the_shortest_are_spread():
    assert not is_spread([1.0, 1.1, 1.2, 5.0, 1.1])
    assert is_spread([1.0, 2.0, 2.1, 2.2, 1.9])


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="counters of Linux")
def test_a_latency_taken_beside_busy_programs_says_so():
    spin = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(spin) for _ in range(3 * CORES)]  # noqa: S603
    try:
        found = measured_latency(
            small_model(), utterance_seconds=20.0, repeats=40, device=torch.device("cpu")
        )
    finally:
        for other in others:
            other.kill()
            other.wait()

    assert found.seconds > 0
    assert found.is_busy
