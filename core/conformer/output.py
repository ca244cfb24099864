"""The output of a model's forward pass.

Shapes: B batch, T frames, D width, V vocabulary.
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """The output of a forward pass; frames beyond an utterance's length have no meaning."""

    logits: Float[Tensor, "batch time vocabulary"]
    is_frame: Bool[Tensor, "batch time"]
    hidden: tuple[Float[Tensor, "batch time width"], ...]
    """Hidden states after each block, also after one that was skipped."""

    @property
    def num_frames(self) -> Int[Tensor, " batch"]:
        return self.is_frame.sum(1)
