"""Places of a transducer's lattice at which models are compared, without transcripts.

They are those that greedy search visits in the unpruned model, and their neighbours in time and in
tokens: where a smaller model's search may come by, too. CTC needs none: it gives one distribution a
frame.

Shapes: B batch, T frames, U tokens, P = U + 1 places of a frame, N chosen places.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

NEIGHBOURS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
"""Steps in frames and in tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Some places of a batch's lattices, along the tokens that were found."""

    tokens: Int[Tensor, "batch tokens"]
    index: Int[Tensor, "chosen 3"]
    """Utterance, frame, and number of tokens before."""


def neighbouring_places(
    visited: Int[Tensor, "visited 3"], tokens: list[list[int]], num_frames: Int[Tensor, " batch"]
) -> Places:
    """Return visited places and their neighbours that exist.

    Args:
        visited: utterance, frame and number of tokens before.
        tokens: that were found.
        num_frames: of each utterance.
    """
    device = num_frames.device
    padded = pad_sequence(
        [torch.tensor(ids, dtype=torch.long, device=device) for ids in tokens], batch_first=True
    )
    num_tokens = torch.tensor([len(ids) for ids in tokens], device=device)
    steps = torch.tensor([(0, *step) for step in NEIGHBOURS], device=device)
    near = (visited[:, None] + steps).flatten(0, 1)
    utterance, frame, num_before = near.unbind(1)
    exists = (frame >= 0) & (frame < num_frames[utterance])
    exists &= (num_before >= 0) & (num_before <= num_tokens[utterance])
    return Places(tokens=padded, index=near[exists].unique(dim=0))
