"""Windows of long audio: their boundaries, what each one reads, and which frames of it are used.

Boundaries lie where the audio is quietest within seconds: in pauses, if there are any. So they
depend on local audio alone, not on where a file begins, and a window begins and ends like an
utterance. Each window reads half the overlap more on each side than is used of its output.

Shapes: T output frames.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from core.features.kaldi import FRAMES_PER_SECOND
from core.inference.timestamps import FrameTimes
from core.report import LONGEST_TRAINED

SECONDS = 12.0
"""Longest window if the report does not state the longest training utterance: among the best
lengths for one model of sentences and one of commands."""
_LONGEST = 30.0
"""Longest window for any report."""
_TIMES_TRAINED = 1.5
"""A window's length over that of the longest training utterance: most windows are shorter, and
models get worse on audio much longer than in training (`benchmarks/speed/long_audio.py`)."""
_SHORTEST = 6.0
"""Shortest window for any report: pauses are further apart than commands are long."""
_PAUSE = 0.3
"""Seconds over which loudness is averaged: longer than a plosive's closure, not than a pause."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Windowing:
    """Length and overlap of windows."""

    seconds: float = SECONDS
    """Longest audio that the model reads at a time: 1 or more."""
    overlap: float = 0.0
    """Seconds that two neighbors share: at most half a window."""
    shift: float = 0.0
    """Second of the first boundary, whatever its loudness; to measure the effect of boundaries."""

    def __post_init__(self) -> None:
        if not self.seconds >= 1:
            raise ValueError(f"`--window` must be 1 s or more, but is {self.seconds:g} instead")
        if not 0 <= self.overlap <= self.seconds / 2:
            raise ValueError(
                f"`--overlap` must be from 0 to {self.seconds / 2:g}, half of `--window`,"
                f" but is {self.overlap:g} instead"
            )
        assert 0 <= self.shift <= self.seconds - self.overlap

    @classmethod
    def fitting(cls, report: Mapping[str, Any]) -> "Windowing":
        """Return windows no longer than a model of this report can read, by its training data."""
        measured, allowed = report.get(LONGEST_TRAINED), _largest_allowed(report)
        # Trained on at most 3, 10 or 40 s: windows of 6, 15 or 30 s.
        if _is_length(measured):
            return cls(seconds=min(max(_TIMES_TRAINED * measured, _SHORTEST), _LONGEST))
        if _is_length(allowed):  # bundles of versions that did not measure it
            return cls(seconds=min(max(_TIMES_TRAINED * allowed, _SHORTEST), SECONDS))
        return cls()


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """The mel frames that a window reads, and the frames of its output that are used."""

    begin: int
    end: int
    first: int
    last: int | None
    """The first frame that is not used; None uses all to the end."""


def find_boundaries(
    loudness: Float[Tensor, " time"], times: FrameTimes, windowing: Windowing
) -> tuple[int, ...]:
    """Return the first output frames of all windows but the first, from the loudness of frames.

    Boundaries are at least a third of a window's used frames apart.
    """
    # Windows of 12 s without overlap and a stride of 4: 25 frames a second, most = 300, around =
    # 100, and averages over 1 + 2 * round(3.75) = 9 frames, 0.36 s.
    frames = FRAMES_PER_SECOND / times.stride  # output frames per second
    most = max(3, round((windowing.seconds - windowing.overlap) * frames))
    around, begin = most // 3, round(windowing.shift * frames)
    averaged = _moving_average(loudness[begin:], 1 + 2 * round(_PAUSE * frames / 2))
    boundaries = [0] if begin else []
    # First the frames that are the quietest of a third of a window on each side: they do not change
    # with what lies further away. A stretch between two of them that is too long is then split. The
    # end of the audio closes the last stretch and is no boundary.
    for pause in [*_quietest(averaged, around), len(averaged)]:
        boundaries += _between(averaged, boundaries[-1] if boundaries else 0, pause, most)
        boundaries.append(pause)
    return tuple(begin + boundary for boundary in boundaries[:-1])


def windows(
    num_frames: int, times: FrameTimes, boundaries: Sequence[int], windowing: Windowing
) -> Iterator[Window]:
    """Yield the windows; their used frames, joined, are all output frames once.

    Example: a stride of 4, a boundary at output frame 100 and an overlap of 20 output frames. The
    first window reads mel frames 0 to 443 and uses its output frames 0 to 99; the second reads from
    mel frame 360 on, which is output frame 90, and uses its output frames from 10 on.

    Args:
        num_frames: mel frames of the audio.
        times: of output frames.
        boundaries: the first output frames of all windows but the first.
        windowing: length and overlap.
    """
    # In output frames, as the boundaries are; `begin` and `end` of a window are in mel frames.
    half = round(windowing.overlap * FRAMES_PER_SECOND / times.stride / 2)
    for kept_from, kept_to in zip((0, *boundaries), (*boundaries, None), strict=True):
        read_from = max(0, kept_from - half)
        if kept_to is None:
            end, last = num_frames, None
        else:  # one more than the overlap: the last frame depends on the next
            end, last = times.stride * (kept_to + half + 1), kept_to - read_from
        yield Window(
            begin=times.stride * read_from,
            end=min(end, num_frames),
            first=kept_from - read_from,
            last=last,
        )


def _largest_allowed(report: Mapping[str, Any]) -> Any:
    """Return `corpus.max_seconds` of a report's config, if it has one."""
    value: Any = report
    for name in ("config", "corpus", "max_seconds"):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _is_length(seconds: Any) -> TypeGuard[float]:
    return type(seconds) in (int, float) and seconds > 0


def _moving_average(loudness: Float[Tensor, " time"], width: int) -> Float[Tensor, " time"]:
    # At the ends the average is over the frames that exist: zeros as padding would look like
    # silence.
    return F.avg_pool1d(
        loudness[None], width, stride=1, padding=width // 2, count_include_pad=False
    )[0]


def _quietest(loudness: Float[Tensor, " time"], around: int) -> list[int]:
    """Return frames that are the quietest of `around` on each side; of equal ones the first."""
    if len(loudness) <= 2 * around:
        return []
    # Minima are negative maxima of negatives: lowest[i] is that of `around` frames from i on. For
    # frame c = around + i, before[i] covers frames c - around to c - 1, and after[i] frames c + 1
    # to c + around.
    # Example: of 5 4 1 4 5 3 2 2 6 7 and around = 2, frames 2 and 6 (the first of two equal ones).
    lowest = -F.max_pool1d(-loudness[None], around, stride=1)[0]  # from each frame on
    before, after = lowest[: -around - 1], lowest[around + 1 :]
    here = loudness[around:-around]
    return [around + int(i) for i in ((here < before) & (here <= after)).nonzero()[:, 0]]


def _between(loudness: Float[Tensor, " time"], begin: int, end: int, most: int) -> list[int]:
    """Return boundaries that split a stretch at its quietest frames until no part is too long.

    Boundaries keep a third of the longest part away from both ends of what they split.
    """
    # Example: 5 4 1 4 5 3 2 2 6 7 from 0 to 10 and most = 6, so margin = 2. Among frames 2 to 7, 2
    # is the quietest; 2 to 10 is still too long, and among its frames 4 to 7, 6 is. Both parts of a
    # split are shorter than the whole, so that it ends.
    margin, cuts, pending = most // 3, [], [(begin, end)]
    while pending:
        begin, end = pending.pop()
        if end - begin > most:
            inner = loudness[begin + margin : end - margin]
            cuts.append(begin + margin + int(inner.argmin()))
            pending += [(begin, cuts[-1]), (cuts[-1], end)]
    return sorted(cuts)
