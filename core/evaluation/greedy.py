"""Greedy CTC decoding: the best token of each frame.

Shapes: B batch, T output frames, V vocabulary.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLANK = 0


def greedy(
    log_probabilities: Float[Tensor, "batch frames vocabulary"], num_frames: Int[Tensor, " batch"]
) -> list[list[int]]:
    """Take each real frame's best token, merge repeats, drop blanks."""
    best = log_probabilities.argmax(dim=2)  # (B, T)
    starts = torch.ones_like(best, dtype=torch.bool)
    # Tokens 5 5 0 5 start at frames 0, 2 and 3; without the blank they are 5 5.
    starts[:, 1:] = best[:, 1:] != best[:, :-1]
    is_real = torch.arange(best.shape[1], device=best.device) < num_frames[:, None]
    is_token = starts & (best != BLANK) & is_real
    # One copy from the device for the whole batch, then a split by utterance.
    counts = is_token.sum(dim=1).tolist()
    return [part.tolist() for part in best[is_token].cpu().split(counts)]
