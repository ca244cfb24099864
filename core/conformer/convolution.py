"""The convolution module: pointwise with GLU, depthwise over time, batch norm, pointwise.

Pointwise convolutions are Linear layers: faster in int8, and one rule less.

Shapes: B batch, T frames, D width, C channels, K kernel.
"""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from core.conformer.axes import Axis, Cost, Kept, Lengths, Slice
from core.conformer.feedforward import module_axis, producer_slices
from core.conformer.norm import BatchNorm, LayerNorm


class Convolution(nn.Module):
    def __init__(self, *, width: int, channels: int, kernel: int, name: str) -> None:
        super().__init__()
        self.name = name
        self.norm = LayerNorm(width, name=f"{name}.norm")
        self.up = nn.Linear(width, 2 * channels)
        self.depthwise = nn.Conv1d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.batch_norm = BatchNorm(channels, name=f"{name}.batch_norm")
        self.down = nn.Linear(channels, width)

    def forward(
        self, x: Float[Tensor, "batch time width"], is_frame: Bool[Tensor, "batch time"]
    ) -> Float[Tensor, "batch time width"]:
        x = F.glu(self.up(self.norm(x)), dim=-1)
        x = x * is_frame[:, :, None]  # padding must not leak through the kernel
        weight = self.depthwise.weight
        x = F.conv1d(
            x.transpose(1, 2),  # (B, C, T)
            weight,
            self.depthwise.bias,
            padding=weight.shape[-1] // 2,
            groups=weight.shape[0],
        ).transpose(1, 2)
        return self.down(F.silu(self.batch_norm(x, is_frame)))

    def axes(self) -> list[Axis]:
        size = self.down.in_features
        channels = Axis(
            name=f"{self.name}.channel",
            kind="channel",
            size=size,
            parent=self.name,
            slices=(
                # The GLU's halves: rows j and j + C belong to channel j.
                *(
                    Slice(tensor=f"{self.name}.up.{tensor}", dim=0, offset=offset)
                    for tensor in ("weight", "bias")
                    for offset in (0, size)
                ),
                Slice(tensor=f"{self.name}.depthwise.weight", dim=0),
                Slice(tensor=f"{self.name}.depthwise.bias", dim=0),
                *self.batch_norm.channel_slices(),
                Slice(tensor=f"{self.name}.down.weight", dim=1, is_scaled=True),
            ),
        )
        return [module_axis(self.name, f"{self.name}.down", self.down), channels]

    def width_slices(self) -> tuple[Slice, ...]:
        return (
            *self.norm.width_slices(),
            Slice(tensor=f"{self.name}.up.weight", dim=1),
            *producer_slices(f"{self.name}.down"),
        )

    def cost(self, kept: Kept, lengths: Lengths) -> Cost:
        d, c, t = kept["width"], kept[f"{self.name}.channel"], lengths.quarter
        kernel = self.depthwise.kernel_size[0]
        return kept[self.name] * Cost(
            params=3 * d * c + c * (kernel + 5) + 3 * d,
            flops=6 * t * d * c + 2 * t * c * kernel,
        )
