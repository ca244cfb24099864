"""Pieces of a file are those of the whole file."""

import numpy as np
import pytest
import soundfile
import torch

from core.data.audio import read_file
from core.data.audio_decoding import CorpusError
from core.data.audio_stream import AudioStream


def write_noise(file, rate_hz, *, seconds=4.0):
    rng = np.random.default_rng(0)
    soundfile.write(file, 0.1 * rng.standard_normal(round(seconds * rate_hz)), rate_hz)
    return file


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_pieces_of_a_file_are_those_of_the_whole(tmp_path, rate_hz):
    file = write_noise(tmp_path / "x.flac", rate_hz)
    whole = read_file(file)

    with AudioStream(file) as recording:
        size, shared = 12_800, 3_200
        for begin in range(0, recording.num_samples, size):
            piece = recording.read(begin, begin + size + shared)
            torch.testing.assert_close(piece, whole[begin : begin + size + shared])

    assert recording.num_samples == len(whole)
    assert recording.seconds == 4.0


def test_a_file_that_ends_before_it_says_is_named(tmp_path):
    file = write_noise(tmp_path / "cut.flac", 16_000)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])

    with (
        AudioStream(file) as recording,
        pytest.raises(CorpusError, match=r"cut\.flac` must be readable audio"),
    ):
        recording.read(0, recording.num_samples)


def test_another_rate_may_be_refused(tmp_path):
    file = write_noise(tmp_path / "fast.wav", 22_050)

    with pytest.raises(CorpusError, match=r"fast.wav` must have 16000 samples a second.*22050"):
        AudioStream(file, resample=False)
