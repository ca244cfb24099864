"""How far two correct programs may differ: what single precision gives, against double precision.

A logit is a sum of many products, and single precision rounds each. Two programs that add in
different orders, or multiply constants out beforehand, round differently. The more layers, the
wider they are and the larger their numbers, the further apart they come: 1e-6 of log-probabilities
for a model of 10 M parameters, 3e-4 for one of 600 M whose logits spread widely. No fixed tolerance
tells that from a mistake. The model itself does: evaluated in double precision it gives what both
are after, and torch's own distance from it shows what rounding costs. Another program is right if
it is hardly further away than torch is.

    Example: torch is 2.0e-4 off, ONNX Runtime 1.5e-4 to the other side: they differ by 3.5e-4, and
    both are right. Torch is 1e-6 off, and a graph 2e-4: that graph has a mistake.

Shapes: B batch, M mel frames, T frames, D width, V vocabulary.
"""

import copy
import math
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from core.conformer.attention import distance_table
from core.conformer.model import Conformer

ALLOWED = 4.0
"""So many times torch's own error: rounding differs by chance, and a largest error is of one of a
million numbers. Mistakes are orders of magnitude larger."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Errors:
    """Largest distances from the log-probabilities in double precision."""

    torch: float = 0.0
    """Of the model in single precision."""
    other: float = 0.0
    """Of the other program."""

    @property
    def is_rounding(self) -> bool:
        return math.isfinite(self.other) and self.other <= ALLOWED * self.torch

    def joined(self, more: "Errors") -> "Errors":
        """Over both of two batches."""
        return Errors(torch=max(self.torch, more.torch), other=max(self.other, more.other))


def rounding_errors(
    model: Conformer,
    speech: tuple[Float[Tensor, "batch mel_frames mels"], Int[Tensor, " batch"]],
    other: Float[Tensor, "real vocabulary"],
    is_frame: Bool[Tensor, "batch time"],
    *,
    is_relative: bool = False,
) -> Errors:
    """The errors of both on a batch.

    Args:
        model: in single precision.
        speech: features and their lengths.
        other: the other program's log-probabilities of the real frames, in their order.
        is_frame: which frames are real.
        is_relative: whether an error is divided by 1 + the number's size.
    """
    right = log_probabilities_in_double(model, *speech)[is_frame]
    with torch.inference_mode():
        single = model(*speech).logits.log_softmax(-1)[is_frame]
    size = 1 + right.abs() if is_relative else torch.ones(())
    ours, theirs = (
        float(((found - right).abs() / size).nan_to_num(nan=math.inf).max())
        for found in (single, other)
    )
    return Errors(torch=ours, other=theirs)


@torch.inference_mode()
def log_probabilities_in_double(
    model: Conformer,
    features: Float[Tensor, "batch mel_frames mels"],
    num_frames: Int[Tensor, " batch"],
) -> Float[Tensor, "batch time vocabulary"]:
    """What a model gives in double precision; one block of it at a time is copied to that."""
    x = _in_double(model.frontend)(features.double(), num_frames)
    is_frame = torch.arange(x.shape[1]) < model.frontend.output_frames(num_frames)[:, None]
    distances = distance_table(
        x.shape[1], model.shape.position_width, device=x.device, dtype=x.dtype
    )
    for block in model.typed_blocks():
        x = _in_double(block)(x, is_frame, distances, frozenset[str]())
    return cast("Tensor", _in_double(model.head)(x)).log_softmax(-1)


def _in_double(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).double()
