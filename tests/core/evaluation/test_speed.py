"""How often a model is timed: as often as is asked for, unless it is slow."""

import time

import pytest
import torch
from torch import nn

from core.evaluation.speed import noise, pass_seconds

CPU = torch.device("cpu")


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
