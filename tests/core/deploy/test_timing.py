"""Frames are where the front end sees them."""

import pytest
import torch
from torch import nn

from core.deploy.timing import frame_times
from core.testing import small_model


@pytest.mark.parametrize("frame", [0, 1, 5])
def test_a_frame_is_in_the_middle_of_the_mel_frames_that_it_sees(frame):
    frontend = small_model().frontend
    features = torch.randn(1, 60, 80, requires_grad=True)

    frontend(features)[0, frame].square().sum().backward()

    seen = features.grad[0].abs().sum(1).nonzero()[:, 0]
    times = frame_times(frontend)
    assert times.middle + times.stride * frame == (int(seen[0]) + int(seen[-1])) / 2


def test_frames_follow_each_other_as_the_front_end_counts_them():
    frontend = small_model().frontend
    few, many = frontend.output_frames(torch.tensor([1000, 1840])).tolist()

    times = frame_times(frontend)

    assert 840 / (many - few) == times.stride
    assert times.end(7) == times.begin(8)
    assert times.begin(8) - times.begin(7) == pytest.approx(times.seconds)
    assert times.begin(0) >= 0


def test_a_front_end_of_more_strides_and_padding_is_seen_as_it_is():
    layers = [nn.Conv2d(1, 1, 3, stride=2, padding=1) for _ in range(3)]
    frontend = nn.Sequential(*(part for layer in layers for part in (layer, nn.Conv2d(1, 1, 1))))

    times = frame_times(frontend)

    assert (times.stride, times.middle) == (8, 0.0)
