"""The two norms: layer norm over the residual width, batch norm over frames.

Shapes: B batch, T frames, D width, C channels.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from core.conformer.axes import Slice
from core.conformer.recomputation import is_repeated
from core.distributed import current, moments

EPSILON = 1e-5
"""Added to variances."""


class LayerNorm(nn.Module):
    """Layer norm with the width of its tensors, so that narrowed weights need no other code."""

    is_open: Tensor | None
    """1 for each open unit, 0 for closed ones, which are 0 in the input; None: all are open."""

    def __init__(self, width: int, *, name: str) -> None:
        super().__init__()
        self.name = name
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("is_open", None, persistent=False)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        if self.is_open is None:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, eps=EPSILON)
        # The statistics of open units alone. Example: x = (1, 0, 3) with the second unit closed has
        # a mean of 2 and a variance of 1, as (1, 3) has.
        x, num_open = x.to(torch.promote_types(x.dtype, torch.float32)), self.is_open.sum()
        centered = (x - x.sum(-1, keepdim=True) / num_open) * self.is_open
        variance = centered.square().sum(-1, keepdim=True) / num_open
        return torch.addcmul(self.bias, centered * torch.rsqrt(variance + EPSILON), self.weight)

    def width_slices(self) -> tuple[Slice, ...]:
        return (
            # A norm's output has deviation 1 whatever its input's scale, so a gate on its input
            # would be undone: its gain and bias carry the gate.
            Slice(tensor=f"{self.name}.weight", dim=0, is_scaled=True),
            Slice(tensor=f"{self.name}.bias", dim=0, is_scaled=True),
        )


def in_autocast(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Cast to autocast's type if it is enabled: once for several products."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class BatchNorm(nn.Module):
    """Batch norm over real frames only: statistics exclude padding."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, name: str) -> None:
        super().__init__()
        self.name = name
        self.momentum: float = 0.1
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(
        self,
        x: Float[Tensor, "batch time channels"],
        is_frame: Bool[Tensor, "batch time"],
        frames: Int[Tensor, " real"] | None = None,
    ) -> Float[Tensor, "batch time channels"]:
        """Normalize a batch in training by its own statistics, else by the running ones.

        Args:
            x: the batch.
            is_frame: whether each frame is real, not padding.
            frames: the numbers of the real frames among all, where they are known; if None, a
                device is waited for.
        """
        if not self.training:
            # y = (x - mean) scale + bias as one multiply-add: x scale + (bias - mean scale).
            scale = self.weight * torch.rsqrt(self.running_var + EPSILON)
            return torch.addcmul(self.bias - self.running_mean * scale, x, scale)
        # Only real frames are normalized, so that the statistics of an utterance do not depend on
        # how much padding its batch gives it; padded frames become 0.
        frames = is_frame.flatten().nonzero().squeeze(1) if frames is None else frames
        real = self._normalize(x.flatten(0, 1).index_select(0, frames))
        padded = real.new_zeros(is_frame.numel(), real.shape[1]).index_copy(0, frames, real)
        return padded.view(x.shape)

    def _normalize(
        self, real: Float[Tensor, "frames channels"]
    ) -> Float[Tensor, "frames channels"]:
        """Normalize by the statistics of the frames of all ranks."""
        if current().size > 1:
            return self._normalize_over_ranks(real)
        if len(real) == 1:
            return self._normalize_one(real)
        return F.batch_norm(
            real,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=True,
            momentum=self._current_momentum(),
        )

    def _current_momentum(self) -> float:
        """Return 0 where a forward pass is repeated for its gradients: it has counted already."""
        return 0.0 if is_repeated() else self.momentum

    def _normalize_over_ranks(
        self, real: Float[Tensor, "frames channels"]
    ) -> Float[Tensor, "frames channels"]:
        mean, spread, num_frames = moments(real.float())
        with torch.no_grad():
            # As `F.batch_norm` on one rank: the batch is normalized by the biased variance, and the
            # running one is unbiased, spread N / (N - 1).
            self.running_mean.lerp_(mean, self._current_momentum())
            unbiased = spread * num_frames / (num_frames - 1).clamp_min(1)
            self.running_var.lerp_(unbiased, self._current_momentum())
        scale = self.weight * torch.rsqrt(spread + EPSILON)
        return torch.addcmul(self.bias - mean * scale, real, scale).to(real.dtype)

    def _normalize_one(self, real: Float[Tensor, "1 channels"]) -> Float[Tensor, "1 channels"]:
        """Normalize the only frame of a batch to the bias; it says nothing of the variance.

        `F.batch_norm` refuses such a batch.
        """
        with torch.no_grad():
            self.running_mean.lerp_(real[0].to(self.running_mean), self._current_momentum())
        return (real - real) * self.weight + self.bias

    def channel_slices(self) -> tuple[Slice, ...]:
        tensors = ("weight", "bias", "running_mean", "running_var")
        return tuple(Slice(tensor=f"{self.name}.{tensor}", dim=0) for tensor in tensors)
