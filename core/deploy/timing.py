"""When output frames are: the one place that knows how long a frame of a model lasts."""

from dataclasses import dataclass
from math import prod

from torch import nn

from core.corpora.features import FRAMES_PER_SECOND


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


def frame_times(frontend: nn.Module) -> FrameTimes:
    """By the strides, kernels and padding of a front end's convolutions, which run in their order.

    Their first dimension is time.
    """
    convolutions = [part for part in frontend.modules() if isinstance(part, nn.Conv2d)]
    middle = 0.0
    for convolution in reversed(convolutions):
        padding = convolution.padding[0]
        assert isinstance(padding, int), "a front end's padding is in numbers"
        reach = (convolution.kernel_size[0] - 1) / 2
        middle = convolution.stride[0] * middle + reach - padding
    return FrameTimes(stride=prod(part.stride[0] for part in convolutions), middle=middle)
