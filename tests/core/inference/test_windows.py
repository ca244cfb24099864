"""Windows cover all speech once, and meet where it is quiet."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.inference.timestamps import FrameTimes
from core.inference.windows import SECONDS, Windowing, seams, windows

TIMES = FrameTimes(stride=4, middle=0.0)
"""25 output frames a second."""


def loudness(num_frames, seed=0):
    return torch.rand(num_frames, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)  # a loaded machine is no slow algorithm
@given(
    num_frames=st.integers(7, 20_000),
    seconds=st.floats(1, 60),
    overlap=st.floats(0, 0.5),
    shift=st.floats(0, 0.5),
    stride=st.sampled_from([1, 4, 8]),
    levels=st.sampled_from([1, 2, 1000]),
)
def test_what_windows_keep_is_every_output_frame_once(
    num_frames, seconds, overlap, shift, stride, levels
):
    windowing = Windowing(seconds=seconds, overlap=overlap * seconds, shift=shift * seconds)
    times = FrameTimes(stride=stride, middle=0.0)
    if num_frames <= seconds * 100:
        return  # it is heard as a whole
    heard = (levels * loudness(num_frames // stride)).floor()
    kept_to = 0

    cut = list(windows(num_frames, times, seams(heard, times, windowing), windowing))

    for window in cut:
        assert window.begin % stride == 0
        assert window.begin // stride + window.first == kept_to
        assert 0 <= window.begin < window.end <= num_frames
        assert window.end - window.begin <= 100 * seconds + 3 * stride  # for rounding
        if window.last is not None:
            assert window.last > window.first
            kept_to = window.begin // stride + window.last
    assert [window.last is None for window in cut] == [False] * (len(cut) - 1) + [True]
    assert cut[-1].end == num_frames


def test_a_window_hears_half_the_overlap_beyond_what_is_kept_of_it():
    windowing = Windowing(seconds=20.0, overlap=4.0)

    _, window, *_ = windows(10_000, TIMES, [200, 500, 700], windowing)

    assert window.first == 50  # 2 s of 40 ms
    assert (window.end - window.begin) // 4 - window.last == 51  # and the frame that is looked into


def test_windows_meet_in_the_pauses():
    speech = 1 + loudness(1500)
    pauses = [110, 300, 480, 620, 800, 1010, 1200, 1390]
    for pause in pauses:
        speech[pause - 4 : pause + 5] = 0.1

    assert seams(speech, TIMES, Windowing(seconds=12.0)) == tuple(pauses)


@settings(deadline=None)  # a loaded machine is no slow algorithm
@given(seed=st.integers(0, 10_000), dropped=st.integers(1, 1500))
def test_where_a_file_begins_moves_only_the_first_seams(seed, dropped):
    windowing, speech = Windowing(seconds=10.0), loudness(4000, seed)
    reach = 3 * 250  # frames of three windows

    whole = seams(speech, TIMES, windowing)
    later = [dropped + seam for seam in seams(speech[dropped:], TIMES, windowing)]
    common = [seam for seam in whole if seam in later]

    assert common
    assert common[0] <= dropped + reach
    assert [s for s in whole if s >= common[0]] == [s for s in later if s >= common[0]]


def test_a_shift_moves_only_the_first_seams():
    speech, windowing = loudness(4000), Windowing(seconds=10.0)

    shifted = seams(speech, TIMES, replace(windowing, shift=5.0))

    assert shifted[0] == 125
    assert shifted != seams(speech, TIMES, windowing)
    assert shifted[5:] == seams(speech, TIMES, windowing)[-len(shifted[5:]) :]


def test_hours_of_silence_are_cut_too():
    found = seams(torch.zeros(200_000), TIMES, Windowing(seconds=10.0))

    edges = [0, *found, 200_000]
    assert max(b - a for a, b in itertools.pairwise(edges)) <= 250


@pytest.mark.parametrize(
    ("report", "seconds"),
    [
        ({"longest_trained_seconds": 8.0}, 12.0),
        ({"longest_trained_seconds": 8.0, "config": {"corpus": {"max_seconds": 30.0}}}, 12.0),
        ({"config": {"corpus": {"max_seconds": 8.0}}}, 12.0),
        ({"longest_trained_seconds": 1.0}, 6.0),
        ({"longest_trained_seconds": 100.0}, 30.0),
        ({"config": {"corpus": {"max_seconds": 5.0}}}, 7.5),
        ({"config": {"corpus": {"max_seconds": 30.0}}}, SECONDS),
        ({}, SECONDS),
        ({"longest_trained_seconds": "long", "config": []}, SECONDS),
        ({"longest_trained_seconds": float("nan")}, SECONDS),
    ],
)
def test_a_window_fits_what_the_model_was_trained_on_as_far_as_that_is_known(report, seconds):
    assert Windowing.fitting(report).seconds == seconds


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seconds": 0.5}, r"`--window` must be 1 s or more, but is 0.5"),
        ({"overlap": 16.0}, r"`--overlap` must be from 0 to 6, .* but is 16"),
        ({"overlap": -1.0}, r"`--overlap` must be from 0 to 6, .* but is -1"),
        ({"seconds": float("nan")}, r"`--window` must be 1 s or more, but is nan"),
    ],
)
def test_windows_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Windowing(**values)
