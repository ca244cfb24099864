"""What is heard by windows is what is heard of the whole."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from core.data.audio import read_file
from core.features.kaldi import log_mel
from core.inference.long_audio import transcribe_windows
from core.inference.windows import Windowing
from core.testing import SHAPE, small_model


@pytest.fixture
def local():
    """A model without blocks: a frame depends on what the front end sees of it alone."""
    return small_model(shape=replace(SHAPE, blocks=()))


def written(file, rate_hz, seconds):
    chance = np.random.default_rng(0)
    soundfile.write(file, 0.1 * chance.standard_normal(round(seconds * rate_hz)), rate_hz)
    return file


@torch.inference_mode()
def whole(model, file):
    waveform = read_file(file)
    features, num_frames = log_mel(waveform[None], torch.tensor([len(waveform)]))
    return model(features, num_frames).logits.log_softmax(-1)[0]


@pytest.mark.parametrize("rate_hz", [16_000, 22_050])
@pytest.mark.parametrize("seconds", [5.0, 7.333, 2.3])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_frames_of_windows_are_those_of_the_whole_file(local, tmp_path, rate_hz, seconds, shift):
    file = written(tmp_path / "x.wav", rate_hz, seconds)
    windowing = Windowing(seconds=2.0, overlap=0.4, shift=shift)

    parts = list(transcribe_windows(local, file, windowing=windowing))

    assert len(parts) > 1
    joined = torch.cat([part.frames.log_probabilities for part in parts])
    torch.testing.assert_close(joined, whole(local, file), atol=2e-3, rtol=0)
    assert sum(part.seconds for part in parts) == pytest.approx(seconds, abs=1e-3)


def test_a_file_that_fits_a_window_is_heard_as_one(tmp_path):
    model, file = small_model(), written(tmp_path / "x.wav", 16_000, 3.0)

    (part,) = transcribe_windows(model, file, windowing=Windowing(seconds=3.0, overlap=1.0))

    assert torch.equal(part.frames.log_probabilities, whole(model, file))
