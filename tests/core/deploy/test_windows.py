"""Windows cover all speech once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.deploy.timing import FrameTimes
from core.deploy.windows import Windowing, windows


@given(
    num_frames=st.integers(7, 20_000),
    seconds=st.floats(1, 60),
    overlap=st.floats(0, 0.5),
    shift=st.floats(0, 0.5),
    stride=st.sampled_from([4, 8]),
)
def test_what_windows_keep_is_every_output_frame_once(num_frames, seconds, overlap, shift, stride):
    windowing = Windowing(seconds=seconds, overlap=overlap * seconds, shift=shift * seconds / 2)
    times = FrameTimes(stride=stride, middle=0.0)
    kept_to = 0

    cut = list(windows(num_frames, times, windowing))

    for window in cut:
        assert window.begin % stride == 0
        assert window.begin // stride + window.first == kept_to
        assert 0 <= window.begin <= window.end <= num_frames
        if window.last is not None:
            assert window.last > window.first
            kept_to = window.begin // stride + window.last
    assert [window.last is None for window in cut] == [False] * (len(cut) - 1) + [True]
    assert cut[-1].end == num_frames


def test_a_window_hears_half_the_overlap_beyond_what_is_kept_of_it():
    times = FrameTimes(stride=4, middle=0.0)

    _, window, *_ = windows(10_000, times, Windowing(seconds=20.0, overlap=4.0))

    assert window.first == 50  # 2 s of 40 ms
    assert (window.end - window.begin) // 4 - window.last == 51  # and the frame that is looked into


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seconds": 0.5}, r"`--window` must be 1 s or more, but is 0.5"),
        ({"overlap": 16.0}, r"`--overlap` must be from 0 to 15, .* but is 16"),
        ({"overlap": -1.0}, r"`--overlap` must be from 0 to 15, .* but is -1"),
        ({"seconds": float("nan")}, r"`--window` must be 1 s or more, but is nan"),
    ],
)
def test_windows_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Windowing(**values)
