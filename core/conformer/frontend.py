"""The convolutional front end: log-mel frames to a quarter as many frames of the residual width.

It holds about 2 % of a Conformer's weights and a quarter of its FLOPs, so its channels are gated
like any other unit.

Shapes: B batch, M mel frames, F mel bins, T = ((M - 1) // 2 - 1) // 2 frames, C channels, D width.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.conformer.axes import Axis, Cost, Kept, Lengths, Slice
from core.conformer.shape import MELS, Shape

_HALF_MELS = (MELS - 1) // 2
_QUARTER_MELS = (_HALF_MELS - 1) // 2


class Frontend(nn.Module):
    mean: Tensor
    deviation: Tensor

    def __init__(self, shape: Shape, *, name: str) -> None:
        super().__init__()
        self.name = name
        self.conv1 = nn.Conv2d(1, shape.sub1, 3, stride=2)
        self.conv2 = nn.Conv2d(shape.sub1, shape.sub2, 3, stride=2)
        self.linear = nn.Linear(shape.sub2 * _QUARTER_MELS, shape.width)
        self.register_buffer("mean", torch.zeros(MELS))
        self.register_buffer("deviation", torch.ones(MELS))

    def forward(
        self, features: Float[Tensor, "batch mel_frames mels"]
    ) -> Float[Tensor, "batch time width"]:
        """Without padding of its own, so an output frame sees real frames or is not one."""
        x = ((features - self.mean) / self.deviation).unsqueeze(1)  # (B, 1, M, F)
        x = F.relu(self.conv1(x))  # (B, C, M / 2, F / 2)
        x = F.relu(self.conv2(x))  # (B, C, T, F / 4)
        x = x.transpose(1, 2).flatten(2)  # (B, T, C * F / 4), channel-major
        return self.linear(x)

    @staticmethod
    def output_frames(num_frames: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        return (((num_frames - 1) // 2 - 1) // 2).clamp(min=0)

    def axes(self) -> list[Axis]:
        conv1, conv2, linear = (f"{self.name}.{part}" for part in ("conv1", "conv2", "linear"))
        sub1 = Axis(
            name=f"{self.name}.sub1",
            kind="frontend",
            size=self.conv1.out_channels,
            floor=1,
            slices=(
                Slice(tensor=f"{conv1}.weight", dim=0),
                Slice(tensor=f"{conv1}.bias", dim=0),
                Slice(tensor=f"{conv2}.weight", dim=1, is_scaled=True),
            ),
        )
        sub2 = Axis(
            name=f"{self.name}.sub2",
            kind="frontend",
            size=self.conv2.out_channels,
            floor=1,
            slices=(
                Slice(tensor=f"{conv2}.weight", dim=0),
                Slice(tensor=f"{conv2}.bias", dim=0),
                Slice(tensor=f"{linear}.weight", dim=1, block=_QUARTER_MELS, is_scaled=True),
            ),
        )
        return [sub1, sub2]

    def width_slices(self) -> tuple[Slice, ...]:
        return (
            Slice(tensor=f"{self.name}.linear.weight", dim=0, is_scaled=True),
            Slice(tensor=f"{self.name}.linear.bias", dim=0, is_scaled=True),
        )

    def cost(self, kept: Kept, lengths: Lengths) -> Cost:
        c1, c2, d = kept[f"{self.name}.sub1"], kept[f"{self.name}.sub2"], kept["width"]
        positions1 = lengths.half * _HALF_MELS
        positions2 = lengths.quarter * _QUARTER_MELS
        return Cost(
            params=10 * c1 + c2 * (9 * c1 + 1) + (c2 * _QUARTER_MELS + 1) * d,
            flops=2 * positions1 * 9 * c1 + 2 * positions2 * (9 * c1 * c2 + c2 * d),
        )
