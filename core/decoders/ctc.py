"""CTC (Graves et al., 2006): a linear layer on each frame, its loss, and its greedy decoding.

Shapes: B batch, T frames, D width, V vocabulary, blank included.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.conformer.axes import Cost, Lengths, Slice, UnitCounts
from core.conformer.output import Output
from core.distributed import part_of_mean
from core.features.kaldi import real_frames

BLANK = 0


class CtcHead(nn.Linear):
    """The logits of each frame; its tensors are those of a linear layer."""

    def __init__(
        self, *, width: int, vocabulary: int, name: str, device: torch.device | str | None = None
    ) -> None:
        super().__init__(width, vocabulary, device=device)
        self.name = name

    def width_slices(self) -> tuple[Slice, ...]:
        # Not scaled: gates have scaled gain and bias of the last norm, which the head reads.
        return (Slice(tensor=f"{self.name}.weight", dim=1),)

    def cost(self, counts: UnitCounts, lengths: Lengths) -> Cost:
        d, v = counts["width"], self.out_features
        return Cost(params=(d + 1) * v, flops=2 * lengths.frames * d * v)


def ctc_loss(
    output: Output, tokens: Int[Tensor, "batch tokens"], num_tokens: Int[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """Return the mean over utterances of the loss per token."""
    log_probabilities = F.log_softmax(output.logits.float(), dim=-1).transpose(0, 1)
    lengths = output.lengths or tuple(output.num_frames.tolist())
    # The operator below `F.ctc_loss`, which would copy the tokens back to the host. An utterance
    # with more tokens than frames has an infinite loss, which counts as 0.
    losses, _ = torch.ops.aten._ctc_loss(  # noqa: SLF001 - an operator's name
        log_probabilities, tokens, lengths, tuple(num_tokens.tolist()), BLANK, zero_infinity=True
    )
    losses = torch.where(losses == torch.inf, 0.0, losses)
    divisors = num_tokens.clamp(min=1).to(losses.device, non_blocking=True)
    return part_of_mean((losses / divisors).mean(), len(num_tokens))


def greedy(
    log_probabilities: Float[Tensor, "batch frames vocabulary"], num_frames: Int[Tensor, " batch"]
) -> list[list[int]]:
    """Take each real frame's best token, merge repeats, drop blanks."""
    best = log_probabilities.argmax(dim=2)  # (B, T)
    starts = torch.ones_like(best, dtype=torch.bool)
    # Tokens 5 5 0 5 start at frames 0, 2 and 3; without the blank they are 5 5.
    starts[:, 1:] = best[:, 1:] != best[:, :-1]
    is_real = real_frames(num_frames, best.shape[1])
    is_token = starts & (best != BLANK) & is_real
    # One copy from the device for the whole batch, then a split by utterance.
    counts = is_token.sum(dim=1).tolist()
    return [part.tolist() for part in best[is_token].cpu().split(counts)]
