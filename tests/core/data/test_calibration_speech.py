"""Calibration speech: which windows of which files are taken, and which are held out."""

import logging

import numpy as np
import pytest
import soundfile
import torch

from core.data.audio_decoding import CorpusError
from core.data.calibration_speech import WINDOW_SECONDS, read_calibration_speech
from core.features.spec import NATIVE

RATE_HZ = 16_000


def write(file, seconds, *, rate_hz=RATE_HZ, loudness=0.1, seed=0):
    noise = np.random.default_rng(seed).standard_normal(round(seconds * rate_hz))
    soundfile.write(file, loudness * noise.clip(-3, 3) / 3, rate_hz)
    return file


def num_windows(batches):
    return sum(len(num_frames) for _, num_frames in batches)


def test_a_window_in_five_is_held_out_and_none_is_in_both(tmp_path):
    files = [write(tmp_path / f"{i}.wav", 8.0, seed=i) for i in range(10)]

    speech = read_calibration_speech(files, NATIVE, seconds=600.0)

    assert (num_windows(speech.calibration), num_windows(speech.held_out)) == (8, 2)
    assert (speech.seconds, speech.held_out_seconds) == (64.0, 16.0)
    rows = [
        features[row, : int(num)].flatten().tolist()
        for features, num_frames in (*speech.calibration, *speech.held_out)
        for row, num in enumerate(num_frames)
    ]
    assert len({tuple(row[:50]) for row in rows}) == 10


def test_windows_are_spread_over_all_files_and_no_longer_than_asked_for(tmp_path):
    files = [write(tmp_path / f"{i}.wav", 100.0, seed=i) for i in range(3)]

    speech = read_calibration_speech(files, NATIVE, seconds=60.0)

    total = speech.seconds + speech.held_out_seconds
    assert 75 <= total <= 75 + WINDOW_SECONDS
    assert all(int(n.max()) <= 100 * WINDOW_SECONDS for _, n in speech.calibration)


def test_the_same_files_give_the_same_batches(tmp_path):
    files = [write(tmp_path / f"{i}.wav", 9.0, seed=i) for i in range(6)]

    first, second = (read_calibration_speech(files, NATIVE, seconds=60.0) for _ in range(2))

    for a, b in zip(first.calibration, second.calibration, strict=True):
        assert torch.equal(a[0], b[0])


def test_a_broken_file_is_left_out_and_named(tmp_path, caplog):
    files = [write(tmp_path / f"{i}.wav", 9.0, seed=i) for i in range(6)]
    files[2].write_bytes(b"no audio")

    with caplog.at_level(logging.WARNING):
        speech = read_calibration_speech(files, NATIVE, seconds=60.0)

    assert num_windows(speech.calibration) + num_windows(speech.held_out) == 5
    assert "2.wav" in caplog.text


def test_another_sample_rate_is_changed(tmp_path):
    files = [write(tmp_path / f"{i}.wav", 9.0, rate_hz=8000, seed=i) for i in range(6)]

    speech = read_calibration_speech(files, NATIVE, seconds=60.0)

    assert speech.seconds + speech.held_out_seconds == pytest.approx(54, abs=0.1)


@pytest.mark.parametrize(
    ("seconds", "loudness", "message"),
    [
        (1.5, 0.1, r"must give 25 s of speech or more, but give 9.0 s instead"),
        (9.0, 0.0, r"give 0.0 s, as all of it is silent instead"),
    ],
)
def test_too_little_speech_is_refused(seconds, loudness, message, tmp_path):
    files = [write(tmp_path / f"{i}.wav", seconds, loudness=loudness) for i in range(6)]

    with pytest.raises(CorpusError, match=message):
        read_calibration_speech(files, NATIVE, seconds=60.0)


def test_files_that_all_cannot_be_read_are_refused_by_the_first(tmp_path):
    with pytest.raises(CorpusError, match=r"missing\.wav` must be an audio file"):
        read_calibration_speech([tmp_path / "missing.wav"], NATIVE, seconds=60.0)
