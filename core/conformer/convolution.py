"""The convolution module: pointwise with GLU, depthwise over time, batch norm, pointwise.

Pointwise convolutions are Linear layers: faster in int8, and one kind of layer less to handle.

Shapes: B batch, T frames, D width, C channels, K kernel.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from core.conformer.axes import Axis, Cost, Lengths, Slice, UnitCounts
from core.conformer.factored import column_slice, linear, rank_axes, row_slices, saved_entries
from core.conformer.feedforward import module_axis
from core.conformer.norm import BatchNorm, LayerNorm


class Convolution(nn.Module):
    """The convolution module of a block; its units are channels."""

    def __init__(
        self, *, width: int, channels: int, kernel: int, name: str, ranks: Mapping[str, int]
    ) -> None:
        super().__init__()
        self.name = name
        self.norm = LayerNorm(width, name=f"{name}.norm")
        self.up = linear(f"{name}.up", width, 2 * channels, ranks)
        self.depthwise = nn.Conv1d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.batch_norm = BatchNorm(channels, name=f"{name}.batch_norm")
        self.down = linear(f"{name}.down", channels, width, ranks)

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        is_frame: Bool[Tensor, "batch time"],
        frames: Int[Tensor, " real"] | None = None,
    ) -> Float[Tensor, "batch time width"]:
        # (B, T, D) to (B, T, 2 C) to (B, T, C): channel j is up_j * sigmoid(up_(j + C)).
        x = F.glu(self.up(self.norm(x)), dim=-1)
        # Padding must not leak through the kernel.
        x = x * is_frame[:, :, None].to(x.dtype)
        x = depthwise(x, self.depthwise.weight, self.depthwise.bias)
        return self.down(F.silu(self.batch_norm(x, is_frame, frames)))

    def axes(self) -> list[Axis]:
        size = self.down.in_features
        # Gated at the input of `down`. Before the batch norm, a closed channel would come out as
        # its bias minus its scaled mean instead of 0, and sampled gates would enter the statistics.
        channels = Axis(
            name=f"{self.name}.channel",
            kind="channel",
            size=size,
            parent=self.name,
            slices=(
                # The GLU's halves: rows j and j + C belong to channel j.
                *(
                    piece
                    for offset in (0, size)
                    for piece in row_slices(f"{self.name}.up", self.up, offset=offset)
                ),
                Slice(tensor=f"{self.name}.depthwise.weight", dim=0),
                Slice(tensor=f"{self.name}.depthwise.bias", dim=0),
                *self.batch_norm.channel_slices(),
                column_slice(f"{self.name}.down", self.down, is_scaled=True),
            ),
        )
        layers = {f"{self.name}.up": self.up, f"{self.name}.down": self.down}
        module = module_axis(self.name, f"{self.name}.down", self.down)
        return [module, channels, *rank_axes(layers)]

    def width_slices(self) -> tuple[Slice, ...]:
        return (
            *self.norm.width_slices(),
            column_slice(f"{self.name}.up", self.up),
            *row_slices(f"{self.name}.down", self.down, is_scaled=True),
        )

    def cost(self, counts: UnitCounts, lengths: Lengths) -> Cost:
        d, c, t = counts["width"], counts[f"{self.name}.channel"], lengths.frames
        kernel = self.depthwise.kernel_size[0]
        less = saved_entries(counts, f"{self.name}.up", d, 2 * c) + saved_entries(
            counts, f"{self.name}.down", c, d
        )
        # up 2 d c + 2 c, depthwise c K + c, batch norm 2 c, down d c + d, layer norm 2 d.
        return counts[self.name] * Cost(
            params=3 * d * c + c * (kernel + 5) + 3 * d - less,
            flops=6 * t * d * c + 2 * t * c * kernel - 2 * t * less,
        )


def depthwise(
    x: Float[Tensor, "batch time channels"],
    weight: Float[Tensor, "channels 1 kernel"],
    bias: Float[Tensor, " channels"] | None,
) -> Float[Tensor, "batch time channels"]:
    """Apply each channel's own filter over time.

    An image one pixel high with channels last needs no transposed copy, and its kernels are twice
    as fast on a CPU. Under autocast on a CPU it is computed in the weights' own type: bf16 is no
    faster, and takes minutes at numbers of channels for which there is no kernel.
    """
    if x.dtype != weight.dtype and x.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):
            return depthwise(x.to(weight.dtype), weight, bias).to(x.dtype)
    # In memory, x is (B, T, C): seen as an image of height 1 it already has channels last.
    image = x.transpose(1, 2)[:, :, None]  # (B, C, 1, T)
    padding, channels = weight.shape[-1] // 2, weight.shape[0]
    filtered = F.conv2d(image, weight[:, :, None], bias, padding=(0, padding), groups=channels)
    return filtered[:, :, 0].transpose(1, 2)
