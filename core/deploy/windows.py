"""Long speech in overlapping windows: which of them hear what, and which frames of each are kept.

A window hears half the overlap more on each side than is kept of it, so that every frame that is
kept was heard among its neighbours.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from core.corpora.features import FRAMES_PER_SECOND
from core.deploy.timing import FrameTimes


@dataclass(frozen=True, kw_only=True, slots=True)
class Windowing:
    """How speech is cut that is longer than a window."""

    seconds: float = 30.0
    """That the model hears at a time: 1 or more."""
    overlap: float = 8.0
    """Seconds that two neighbours share: less than a window."""
    shift: float = 0.0
    """By which all windows come earlier, to see what depends on where they lie."""

    def __post_init__(self) -> None:
        if not self.seconds >= 1:
            raise ValueError(f"`--window` must be 1 s or more, but is {self.seconds:g} instead")
        if not 0 <= self.overlap <= self.seconds / 2:
            raise ValueError(
                f"`--overlap` must be from 0 to {self.seconds / 2:g}, half of `--window`,"
                f" but is {self.overlap:g} instead"
            )
        assert 0 <= self.shift <= self.seconds / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """What is heard, in mel frames, and what is kept of it, in output frames of its own."""

    begin: int
    end: int
    first: int
    last: int | None
    """Not kept any more; None keeps all to the end."""


def windows(num_frames: int, times: FrameTimes, windowing: Windowing) -> Iterator[Window]:
    """Cut so many mel frames; what is kept of all windows, joined, are all output frames once."""
    frames = FRAMES_PER_SECOND / times.stride  # of output, a second
    size = round(windowing.seconds * frames)
    half = round(windowing.overlap * frames / 2)
    kept_from, kept_to = 0, size - half - round(windowing.shift * frames)
    while True:
        heard_from = max(0, kept_from - half)
        begin = times.stride * heard_from
        end = times.stride * (kept_to + half + 1)  # one more: the last frame sees into the next
        is_last = end >= num_frames
        yield Window(
            begin=begin,
            end=min(end, num_frames),
            first=kept_from - heard_from,
            last=None if is_last else kept_to - heard_from,
        )
        if is_last:
            return
        kept_from, kept_to = kept_to, kept_to + size - 2 * half
