"""Times of output frames: the only module that turns frames into seconds."""

from dataclasses import dataclass

from core.features.kaldi import FRAMES_PER_SECOND
from core.features.spec import FrontendSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameTimes:
    """Positions of output frames among mel frames."""

    stride: int
    """Mel frames from one output frame to the next."""
    middle: float
    """The mel frame in the middle of those that the first output frame depends on."""

    @property
    def seconds(self) -> float:
        """Length of an output frame."""
        return self.stride / FRAMES_PER_SECOND

    def begin(self, frame: int) -> float:
        """Return the start of a frame in seconds: half a frame before the middle of its input.

        For example, with a stride of 4 and a middle of 0, frame 10 begins at
        (0.5 + 40 - 2) / 100 = 0.385 s.
        """
        middle = (
            self.middle + 0.5 + self.stride * frame
        )  # a mel frame is in the middle of its 10 ms
        return max(0.0, (middle - self.stride / 2) / FRAMES_PER_SECOND)

    def end(self, frame: int) -> float:
        return self.begin(frame + 1)


def frame_times(spec: FrontendSpec) -> FrameTimes:
    """Return the times of a front end: kernels of 3 and strides of 2, with padding of 1 or none."""
    # Without padding the first output of two stages sees mel frames 0 to 6, whose middle is 3: 0,
    # then 2 * 0 + 1 = 1, then 2 * 1 + 1 = 3. With padding it is always frame 0.
    middle = 0.0
    for _ in range(spec.stages):
        middle = 2 * middle + 1 - spec.is_padded
    return FrameTimes(stride=spec.subsampling, middle=middle)
