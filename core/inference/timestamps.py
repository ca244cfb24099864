"""When output frames are: the one place that knows how long a frame of a model lasts."""

from dataclasses import dataclass

from core.features.kaldi import FRAMES_PER_SECOND
from core.features.spec import FrontendSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameTimes:
    """Where output frames lie among mel frames."""

    stride: int
    """Mel frames from one to the next."""
    middle: float
    """The mel frame in the middle of those that the first one sees."""

    @property
    def seconds(self) -> float:
        """How long a frame lasts."""
        return self.stride / FRAMES_PER_SECOND

    def begin(self, frame: int) -> float:
        """Half a frame before the middle of what it sees, in seconds from the file's start."""
        middle = (
            self.middle + 0.5 + self.stride * frame
        )  # a mel frame is in the middle of its 10 ms
        return max(0.0, (middle - self.stride / 2) / FRAMES_PER_SECOND)

    def end(self, frame: int) -> float:
        return self.begin(frame + 1)


def frame_times(spec: FrontendSpec) -> FrameTimes:
    """By the stages of a front end: kernels of 3 and strides of 2, with padding of 1 or without."""
    middle = 0.0
    for _ in range(spec.stages):
        middle = 2 * middle + 1 - spec.is_padded
    return FrameTimes(stride=spec.subsampling, middle=middle)
