"""Long speech in windows: where they meet, which of them hear what, and which frames are kept.

Windows meet where speech is quietest for seconds around: in pauses, if there are any. So where
they lie depends on the speech near by alone, not on where a file begins, and a window begins and
ends as an utterance does. Each hears half the overlap more on each side than is kept of it.

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
"""Of a window at most, where it was not measured how long what the model learned from was: among
the best for one model of sentences and one of commands."""
_LONGEST = 30.0
"""Of a window by what was measured."""
_TIMES_HEARD = 1.5
"""A window's length over that of the longest utterance: most of what it is cut into is shorter,
and models get worse when they hear much more than they ever did (`benchmarks/long_audio.py`)."""
_SHORTEST = 6.0
"""Of a window by a report: pauses are further apart than commands are long."""
_PAUSE = 0.3
"""Seconds over which loudness is averaged: more than a plosive's closure, no more than a pause."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Windowing:
    """How speech is cut that is longer than a window."""

    seconds: float = SECONDS
    """That the model hears at a time, at most: 1 or more."""
    overlap: float = 0.0
    """Seconds that two neighbours share: at most half a window."""
    shift: float = 0.0
    """Where the first two windows meet, be it loud; to see what depends on where they lie."""

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
        """For a model of that report: windows no longer than what it knows how to hear."""
        measured, allowed = report.get(LONGEST_TRAINED), _allowed(report)
        if _is_length(measured):
            return cls(seconds=min(max(_TIMES_HEARD * measured, _SHORTEST), _LONGEST))
        if _is_length(allowed):  # of bundles from before that was measured
            return cls(seconds=min(max(_TIMES_HEARD * allowed, _SHORTEST), SECONDS))
        return cls()


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """What is heard, in mel frames, and what is kept of it, in output frames of its own."""

    begin: int
    end: int
    first: int
    last: int | None
    """Not kept any more; None keeps all to the end."""


def seams(
    loudness: Float[Tensor, " time"], times: FrameTimes, windowing: Windowing
) -> tuple[int, ...]:
    """The first output frames of all windows but the first, by how loud each frame is.

    At least a third of what is kept of a window lies between two.
    """
    frames = FRAMES_PER_SECOND / times.stride  # of output, a second
    most = max(3, round((windowing.seconds - windowing.overlap) * frames))
    around, begin = most // 3, round(windowing.shift * frames)
    averaged = _averaged(loudness[begin:], 1 + 2 * round(_PAUSE * frames / 2))
    found = [0] if begin else []
    for pause in [*_quietest(averaged, around), len(averaged)]:
        found += _between(averaged, found[-1] if found else 0, pause, most)
        found.append(pause)
    return tuple(begin + seam for seam in found[:-1])


def windows(
    num_frames: int, times: FrameTimes, seams: Sequence[int], windowing: Windowing
) -> Iterator[Window]:
    """Cut so many mel frames; what is kept of all windows, joined, are all output frames once."""
    half = round(windowing.overlap * FRAMES_PER_SECOND / times.stride / 2)
    for kept_from, kept_to in zip((0, *seams), (*seams, None), strict=True):
        heard_from = max(0, kept_from - half)
        if kept_to is None:
            end, last = num_frames, None
        else:  # one more than is shared: the last frame sees into the next
            end, last = times.stride * (kept_to + half + 1), kept_to - heard_from
        yield Window(
            begin=times.stride * heard_from,
            end=min(end, num_frames),
            first=kept_from - heard_from,
            last=last,
        )


def _allowed(report: Mapping[str, Any]) -> Any:
    """The longest utterance that the config of a report let in, if it has one."""
    found: Any = report
    for name in ("config", "corpus", "max_seconds"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _is_length(seconds: Any) -> TypeGuard[float]:
    return type(seconds) in (int, float) and seconds > 0


def _averaged(loudness: Float[Tensor, " time"], width: int) -> Float[Tensor, " time"]:
    return F.avg_pool1d(
        loudness[None], width, stride=1, padding=width // 2, count_include_pad=False
    )[0]


def _quietest(loudness: Float[Tensor, " time"], around: int) -> list[int]:
    """Frames than which none in so many on each side is quieter; of equal ones the first."""
    if len(loudness) <= 2 * around:
        return []
    lowest = -F.max_pool1d(-loudness[None], around, stride=1)[0]  # from each frame on
    before, after = lowest[: -around - 1], lowest[around + 1 :]
    here = loudness[around:-around]
    return [around + int(i) for i in ((here < before) & (here <= after)).nonzero()[:, 0]]


def _between(loudness: Float[Tensor, " time"], begin: int, end: int, most: int) -> list[int]:
    """Cut a stretch where it is quietest until no piece is longer than it may be."""
    margin, found, stretches = most // 3, [], [(begin, end)]
    while stretches:
        begin, end = stretches.pop()
        if end - begin > most:
            inner = loudness[begin + margin : end - margin]
            found.append(begin + margin + int(inner.argmin()))
            stretches += [(begin, found[-1]), (found[-1], end)]
    return sorted(found)
