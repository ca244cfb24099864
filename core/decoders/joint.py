"""The joint of a transducer: from a frame and the tokens so far to the next token's distribution.

Both are projected to one width and added; then an activation and a linear layer over tokens and,
in TDT, durations. Losses need few values of each distribution, so the joint hands these out, block
by block of frames, and the whole of (B, T, P, V) is never in memory.

Shapes: B batch, T frames, P places (tokens and one more), J joint width, V vocabulary, D durations.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from core.conformer.axes import Axis, Cost, Number, Slice, UnitCounts
from core.conformer.shape import Activation
from core.decoders.lattice import LatticeScores

ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
BLOCK_BYTES = 2**25
"""Of a block's logits. As large as fits a core's share of the cache pays; more gains nothing."""
KEPT_BYTES = 2**28
"""Of all logits of a batch: so many are kept for the gradients. More are computed again, which
costs a quarter of the time of the joint."""


class Joint(nn.Module):
    """Distributions over tokens and durations at places of a lattice."""

    def __init__(
        self,
        *,
        encoder_width: int,
        predictor_width: int,
        width: int,
        vocabulary: int,
        blank: int,
        durations: Sequence[int] = (),
        activation: Activation = "relu",
        name: str = "joint",
    ) -> None:
        """Make a joint of these sizes; RNN-T has no durations, those of TDT ascend."""
        super().__init__()
        self.name = name
        self.blank, self.durations = blank, tuple(durations)
        self.activation: Activation = activation
        self.encoder = nn.Linear(encoder_width, width)
        self.predictor = nn.Linear(predictor_width, width)
        self.output = nn.Linear(width, vocabulary + len(self.durations))

    def logits(
        self, frames: Float[Tensor, "*#places width"], predicted: Float[Tensor, "*#places width"]
    ) -> tuple[Float[Tensor, "*places vocabulary"], Float[Tensor, "*places durations"]]:
        """Return the logits of tokens and of durations, from projected frames and predictions."""
        return self.split(self.output(self.hidden(frames, predicted)))

    def split(
        self, whole: Float[Tensor, "*places outputs"]
    ) -> tuple[Float[Tensor, "*places vocabulary"], Float[Tensor, "*places durations"]]:
        """Return the logits of tokens and those of durations."""
        vocabulary = whole.shape[-1] - len(self.durations)
        return whole[..., :vocabulary], whole[..., vocabulary:]

    def hidden(
        self, frames: Float[Tensor, "*#places width"], predicted: Float[Tensor, "*#places width"]
    ) -> Float[Tensor, "*places width"]:
        """Return what the output layer reads."""
        return ACTIVATIONS[self.activation](frames + predicted)

    def scores(
        self,
        encoded: Float[Tensor, "batch frames encoder_width"],
        predicted: Float[Tensor, "batch places predictor_width"],
        tokens: Int[Tensor, "batch tokens"],
        *,
        block_bytes: int = BLOCK_BYTES,
        kept_bytes: int = KEPT_BYTES,
    ) -> LatticeScores:
        """Return the log-probabilities that the loss of a transcript needs.

        Args:
            encoded: the encoder's frames.
            predicted: the predictor's output before each token and after the last.
            tokens: the transcripts.
            block_bytes: largest size of the logits that are computed at once.
            kept_bytes: largest size of all logits that are kept for gradients; more are computed
                again.
        """
        frames, predictions = self.encoder(encoded), self.predictor(predicted)
        row_bytes = 4 * predictions[..., 0].numel() * self.output.out_features
        # After the last token there is no next one: blank stands there, and no path takes it.
        following = F.pad(tokens, (0, 1), value=self.blank)
        # The tensors that are here now: under gates, the backward pass comes when the model has
        # its own ones back.
        weight, bias = self.output.weight, self.output.bias
        score = partial(
            _block_scores,
            activation=ACTIVATIONS[self.activation],
            blank=self.blank,
            num_durations=len(self.durations),
        )
        if row_bytes * frames.shape[1] > kept_bytes:
            score = partial(checkpoint, score, use_reentrant=False)
        parts = [
            score(block, predictions, following, weight, bias)
            for block in frames.split(max(1, block_bytes // row_bytes), dim=1)
        ]
        blank, label, duration = (torch.cat(blocks, dim=1) for blocks in zip(*parts, strict=True))
        return LatticeScores(blank=blank, label=label, duration=duration, durations=self.durations)

    def axis(self) -> Axis:
        """Return the axis of the units between both projections and the output."""
        rows = (
            Slice(tensor=f"{self.name}.{side}.{tensor}", dim=0)
            for side in ("encoder", "predictor")
            for tensor in ("weight", "bias")
        )
        reader = Slice(tensor=f"{self.name}.output.weight", dim=1, is_scaled=True)
        return Axis(
            name=self.name,
            kind="joint",
            size=self.output.in_features,
            floor=1,
            slices=(*rows, reader),
        )

    def width_slices(self) -> tuple[Slice, ...]:
        # Not scaled: gates have scaled gain and bias of the last norm, which is read here.
        return (Slice(tensor=f"{self.name}.encoder.weight", dim=1),)

    def predictor_slice(self) -> Slice:
        """Return the columns that read the predictor."""
        return Slice(tensor=f"{self.name}.predictor.weight", dim=1, is_scaled=True)

    def cost(
        self, counts: UnitCounts, predictor_width: Number, *, frames: int, tokens: int, visits: int
    ) -> Cost:
        """Return the cost of projecting frames and predictions, and of visits of places."""
        d, j, outputs = counts["width"], counts[self.name], self.output.out_features
        return Cost(
            params=(d + predictor_width + 2) * j + (j + 1) * outputs,
            flops=2 * j * (frames * d + tokens * predictor_width + visits * outputs),
        )


def _block_scores(
    frames: Float[Tensor, "batch frames width"],
    predictions: Float[Tensor, "batch places width"],
    following: Int[Tensor, "batch places"],
    weight: Float[Tensor, "outputs width"],
    bias: Float[Tensor, " outputs"],
    *,
    activation: Callable[[Tensor], Tensor],
    blank: int,
    num_durations: int,
) -> tuple[
    Float[Tensor, "batch frames places"],
    Float[Tensor, "batch frames places"],
    Float[Tensor, "batch frames places durations"],
]:
    """Return log-probabilities of blank, of the following token, and of durations."""
    logits = F.linear(activation(frames[:, :, None] + predictions[:, None]), weight, bias)
    of_tokens, of_durations = logits.split([len(bias) - num_durations, num_durations], dim=-1)
    return score_logits(of_tokens, of_durations, following, blank=blank)


def score_logits(
    of_tokens: Float[Tensor, "batch frames places vocabulary"],
    of_durations: Float[Tensor, "batch frames places durations"],
    following: Int[Tensor, "batch places"],
    *,
    blank: int,
) -> tuple[
    Float[Tensor, "batch frames places"],
    Float[Tensor, "batch frames places"],
    Float[Tensor, "batch frames places durations"],
]:
    """Return log-probabilities of blank, of the following token, and of durations.

    Args:
        of_tokens: logits.
        of_durations: logits; none for RNN-T.
        following: the next token of each place.
        blank: its number among the tokens.
    """
    # Sums over a vocabulary need more digits than autocast's types have.
    if of_tokens.dtype.itemsize < 4:
        of_tokens, of_durations = of_tokens.float(), of_durations.float()
    total = of_tokens.logsumexp(-1)
    index = following[:, None, :, None].expand(-1, of_tokens.shape[1], -1, 1)
    label = of_tokens.gather(-1, index)[..., 0]
    return of_tokens[..., blank] - total, label - total, of_durations.log_softmax(-1)
