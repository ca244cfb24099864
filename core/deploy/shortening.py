"""CTC's frames made one fewer where a runtime reads fewer than there are, and no text changes.

sherpa-onnx reads floor(M / f) frames of a graph that `from_nemo_ctc` loads, of M features and a
subsampling of f. Strides that are padded leave ceil(M / f), and speech that ends at once says its
last token in the last frame.

Shapes: B batch, T frames, V vocabulary.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from core.corpora.text import BLANK

_NONE = -1  # no token


class Shortened(nn.Module):
    """A rewritten model of which so few frames are read."""

    def __init__(self, model: nn.Module, subsampling: int) -> None:
        super().__init__()
        self.model, self.subsampling = model, subsampling

    def forward(
        self, features: Float[Tensor, "batch mel_frames mels"], num_frames: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch time vocabulary"], Int[Tensor, " batch"]]:
        log_probabilities, lengths = self.model(features, num_frames)
        read = num_frames // self.subsampling
        return shortened(log_probabilities, lengths, read), torch.minimum(read, lengths)


def shortened(
    log_probabilities: Float[Tensor, "batch time vocabulary"],
    lengths: Int[Tensor, " batch"],
    read: Int[Tensor, " batch"],
) -> Float[Tensor, "batch time vocabulary"]:
    """Without one frame of each utterance that has more than are read.

    It is the last one that greedy search does not miss; the last of all, if it would miss any.
    """
    time = torch.arange(log_probabilities.shape[1], device=lengths.device)
    unmissed = _unmissed(log_probabilities.argmax(-1), time < lengths[:, None])
    left_out = torch.where(unmissed, time, _NONE).amax(1)
    left_out = torch.where(left_out == _NONE, lengths - 1, left_out)
    is_moved = (lengths > read)[:, None] & (time >= left_out[:, None])
    source = (time + is_moved).clamp(max=log_probabilities.shape[1] - 1)  # (B, T)
    index = source[:, :, None].expand(-1, -1, log_probabilities.shape[2])
    return log_probabilities.gather(1, index)


def _unmissed(
    best: Int[Tensor, "batch time"], is_frame: Bool[Tensor, "batch time"]
) -> Bool[Tensor, "batch time"]:
    """Frames that repeat a token, and blanks that do not part a token from itself."""
    best = torch.where(is_frame, best, _NONE)
    before, after = (
        F.pad(best, (1, 0), value=_NONE)[:, :-1],
        F.pad(best, (0, 1), value=_NONE)[:, 1:],
    )
    return is_frame & ((best == before) | ((best == BLANK) & (before != after)))
