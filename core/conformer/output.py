"""The output of a model's forward pass.

Shapes: B batch, T frames, D width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from core.decoders.lattice import LatticeScores


class DecoderError(ValueError):
    """Raised where a model lacks the decoder that is asked for."""

    def __init__(self) -> None:
        super().__init__(
            "The model must have a CTC head for this, but has a transducer alone instead; sweeps,"
            " `prune`, `evaluate`, `transcribe` and `export` to onnx or onnx-asr take transducers."
        )


def frame_numbers(lengths: Sequence[int], longest: int) -> Int[np.ndarray, " real"]:
    """Return the numbers of the real frames among all frames of a batch.

    Example: of lengths 2 and 3, padded to 3: 0, 1, 3, 4 and 5.
    """
    return np.flatnonzero(np.arange(longest) < np.asarray(lengths)[:, None])


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """The output of a forward pass; frames beyond an utterance's length have no meaning."""

    is_frame: Bool[Tensor, "batch time"]
    hidden: tuple[Float[Tensor, "batch time width"], ...]
    """Hidden states after each block, also after one that was skipped."""
    ctc_logits: Float[Tensor, "batch time vocabulary"] | None
    """None without a CTC head."""
    lengths: tuple[int, ...] | None = None
    """Real frames of each utterance, known to the host; of a model in training."""
    frames: Int[Tensor, " real"] | None = None
    """The numbers of the real frames among all, on the device; of a model in training."""
    encoded: Float[Tensor, "batch time width"] | None = None
    """Frames that decoders read."""
    lattice: LatticeScores | None = None
    """None without a transducer, or without transcripts."""
    at_places: Float[Tensor, "chosen outputs"] | None = None
    """A transducer's log-probabilities at places that were asked for: of tokens, then of durations.
    """

    @property
    def num_frames(self) -> Int[Tensor, " batch"]:
        return self.is_frame.sum(1)

    def frame_numbers(self) -> Int[Tensor, " real"]:
        """Return the numbers of the real frames; unless in training, a device is waited for."""
        if self.frames is not None:
            return self.frames
        return self.is_frame.flatten().nonzero().squeeze(1)

    def log_probs(self) -> Float[Tensor, "distributions outputs"]:
        """Return log-probabilities at the places that were asked for, or else at real frames."""
        if self.at_places is not None:
            return self.at_places
        return self.logits.float().log_softmax(-1)[self.is_frame]

    @property
    def logits(self) -> Float[Tensor, "batch time vocabulary"]:
        """Return the logits of the CTC head.

        Raises:
            DecoderError: if the model has none.
        """
        if self.ctc_logits is None:
            raise DecoderError
        return self.ctc_logits
