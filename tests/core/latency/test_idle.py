"""Latencies beside the unpruned model's."""

import pytest
import torch

from core.latency.idle import IdleLatency, measure_idle
from core.testing import deeper, small_model
from tests.support.made_outcomes import make_outcome

CPU = torch.device("cpu")


def test_a_model_of_few_blocks_is_faster_and_the_same_model_is_not():
    whole, small = small_model(shape=deeper(12)), small_model(shape=deeper(2))

    def measured(model):
        return measure_idle(model, whole, utterance_seconds=2.0, repeats=3, threads=1, device=CPU)

    faster, equal = measured(small), measured(small_model(shape=deeper(12)))

    assert faster.speedup > 2 > equal.speedup > 0.5
    assert faster.speedup_low <= faster.speedup <= faster.speedup_high
    assert faster.seconds < equal.seconds


def test_threads_are_as_before():
    before = torch.get_num_threads()
    model = small_model()
    measure_idle(model, model, utterance_seconds=1.0, repeats=1, threads=1, device=CPU)

    assert torch.get_num_threads() == before


def test_an_outcome_takes_the_new_latency_and_nothing_else():
    latency = IdleLatency(
        seconds=0.02, speedup=3.0, speedup_low=2.5, speedup_high=3.5, is_busy=False
    )
    before = make_outcome(0.1, 2.0, latency_busy=True)

    after = latency.updated(before, utterance_seconds=10.0)

    assert (after.latency_ms, after.latency_busy, after.latency_idle) == (20.0, False, True)
    assert after.real_time_factor == pytest.approx(0.002)
    assert (after.speedup_low, after.speedup, after.speedup_high) == (2.5, 3.0, 3.5)
    assert (after.wer, after.gflops, after.model) == (before.wer, before.gflops, before.model)
