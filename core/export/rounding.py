"""Rounding errors of two programs in single precision, measured against double precision.

A logit is a sum of many products, and single precision rounds each. Two programs that add in
different orders, or multiply constants out beforehand, round differently. The difference grows with
the number of layers, their width and the size of their values: 1e-6 of log-probabilities for a
model of 10 M parameters, 3e-4 for one of 600 M with a wide range of logits. No fixed tolerance
separates that from a mistake. The model in double precision does: torch's own distance from it is
the error of rounding. Another program is right if its distance is not much larger than torch's.

    Example: torch is 2.0e-4 off, ONNX Runtime 1.5e-4 to the other side: they differ by 3.5e-4, and
    both are right. If torch is 1e-6 off and a graph 2e-4, that graph has a mistake.

Shapes: B batch, M mel frames, T frames, D width, V vocabulary.
"""

import copy
import math
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.conformer.attention import distance_table
from core.conformer.model import Conformer
from core.decoders.places import Places
from core.features.kaldi import real_frames

ALLOWED = 4.0
"""Largest allowed multiple of torch's own error: rounding is random, and each error is the largest
of a million numbers. Mistakes are orders of magnitude larger."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Errors:
    """Largest distances from the log-probabilities in double precision."""

    torch: float = 0.0
    """Error of the model in single precision."""
    other: float = 0.0
    """Error of the other program."""

    @property
    def is_rounding(self) -> bool:
        return math.isfinite(self.other) and self.other <= ALLOWED * self.torch

    def combine(self, more: "Errors") -> "Errors":
        """Return the larger errors of two batches."""
        return Errors(torch=max(self.torch, more.torch), other=max(self.other, more.other))


def rounding_errors(
    model: Conformer,
    speech: tuple[Float[Tensor, "batch mel_frames mels"], Int[Tensor, " batch"]],
    other: Float[Tensor, "distributions outputs"],
    *,
    places: Places | None = None,
    is_relative: bool = False,
) -> Errors:
    """Return the errors of the model and of another program on a batch.

    Args:
        model: in single precision.
        speech: features and their lengths.
        other: the other program's log-probabilities of the real frames or at the places, in order.
        places: of a transducer.
        is_relative: whether an error is divided by 1 + the number's size.
    """
    reference = log_probabilities_in_double(model, *speech, places)
    with torch.inference_mode():
        single = model(*speech, places=places).log_probs()
    # An error of 1e-4 at a log-probability of -9 counts as 1e-5.
    size = 1 + reference.abs() if is_relative else torch.ones(())
    ours, theirs = (
        float(((values - reference).abs() / size).nan_to_num(nan=math.inf).max())
        for values in (single, other)
    )
    return Errors(torch=ours, other=theirs)


@torch.inference_mode()
def log_probabilities_in_double(
    model: Conformer,
    features: Float[Tensor, "batch mel_frames mels"],
    num_frames: Int[Tensor, " batch"],
    places: Places | None = None,
) -> Float[Tensor, "distributions outputs"]:
    """Return log-probabilities in double precision; one block at a time is copied to it.

    Args:
        model: in single precision.
        features: of a batch.
        num_frames: mel frames of each utterance.
        places: of a transducer; without them CTC's are returned, of the real frames.
    """
    # Step by step as in `Conformer.forward`: a whole copy in double precision would take twice the
    # memory of the model, a copy of a block little.
    x = _in_double(model.frontend)(features.double(), num_frames)
    is_frame = real_frames(model.frontend.output_frames(num_frames), x.shape[1])
    distances = distance_table(
        x.shape[1], model.shape.position_width, device=x.device, dtype=x.dtype
    )
    for block in model.typed_blocks():
        x = _in_double(block)(x, is_frame, distances, frozenset[str]())
    if places is not None:
        assert model.transducer is not None
        return cast("Tensor", _in_double(model.transducer)(x, places))
    return cast("Tensor", _in_double(model.ctc_head)(x)[is_frame]).log_softmax(-1)


def _in_double(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).double()
