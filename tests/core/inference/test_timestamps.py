"""Frames are where the front end sees them."""

import pytest
import torch

from core.inference.timestamps import frame_times
from core.testing import FRONTEND_SPECS, SHAPE, small_model, with_frontend


@pytest.mark.parametrize("kind", FRONTEND_SPECS)
@pytest.mark.parametrize("frame", [2, 5])
def test_a_frame_is_in_the_middle_of_the_mel_frames_that_it_sees(frame, kind):
    frontend = small_model(shape=with_frontend(SHAPE, kind)).frontend
    features = torch.randn(1, 100, 80, requires_grad=True)

    frontend(features, torch.tensor([100]))[0, frame].square().sum().backward()

    seen = features.grad[0].abs().sum(1).nonzero()[:, 0]
    times = frame_times(FRONTEND_SPECS[kind])
    assert times.middle + times.stride * frame == (int(seen[0]) + int(seen[-1])) / 2


@pytest.mark.parametrize("kind", FRONTEND_SPECS)
def test_frames_follow_each_other_as_the_front_end_counts_them(kind):
    times = frame_times(FRONTEND_SPECS[kind])

    few, many = (FRONTEND_SPECS[kind].output_frames(frames) for frames in (1000, 1840))
    assert 840 / (many - few) == times.stride
    assert times.end(7) == times.begin(8)
    assert times.begin(8) - times.begin(7) == pytest.approx(times.seconds)
    assert times.begin(0) >= 0
