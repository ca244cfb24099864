"""The joint of a transducer: from a frame and the tokens so far to the next token's distribution.

Both are projected to one width and added; then an activation and a linear layer over tokens and,
in TDT, durations. Losses need few values of each distribution, so the joint hands these out, block
by block of frames, and the whole of (B, T, P, V) is never in memory.

Shapes: B batch, T frames, P places (tokens and one more), J joint width, V vocabulary, D durations.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from core.decoders.lattice import Arcs

Activation = Literal["relu", "tanh", "sigmoid"]
ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
BLOCK_BYTES = 2**25
"""Of a block's logits. As large as fits a core's share of the cache pays; more gains nothing."""


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
    ) -> None:
        """Make a joint of these sizes; RNN-T has no durations, those of TDT ascend."""
        super().__init__()
        self.blank, self.durations = blank, tuple(durations)
        self.activation: Activation = activation
        self.encoder = nn.Linear(encoder_width, width)
        self.predictor = nn.Linear(predictor_width, width)
        self.output = nn.Linear(width, vocabulary + len(self.durations))

    def logits(
        self, frames: Float[Tensor, "*#places width"], predicted: Float[Tensor, "*#places width"]
    ) -> tuple[Float[Tensor, "*places vocabulary"], Float[Tensor, "*places durations"]]:
        """Return the logits of tokens and of durations, from projected frames and predictions."""
        whole = self.output(ACTIVATIONS[self.activation](frames + predicted))
        vocabulary = whole.shape[-1] - len(self.durations)
        return whole[..., :vocabulary], whole[..., vocabulary:]

    def arcs(
        self,
        encoded: Float[Tensor, "batch frames encoder_width"],
        predicted: Float[Tensor, "batch places predictor_width"],
        tokens: Int[Tensor, "batch tokens"],
        *,
        sigma: float = 0.0,
        block_bytes: int = BLOCK_BYTES,
    ) -> Arcs:
        """Return the log-probabilities that the loss of a transcript needs.

        Args:
            encoded: the encoder's frames.
            predicted: the predictor's output before each token and after the last.
            tokens: the transcripts.
            sigma: by which tokens' log-probabilities, blank's included, are lowered: so TDT learns
                to prefer long durations.
            block_bytes: largest size of the logits in memory; they are computed again for
                gradients.
        """
        frames, predictions = self.encoder(encoded), self.predictor(predicted)
        row_bytes = 4 * predictions[..., 0].numel() * self.output.out_features
        blocks = frames.split(max(1, block_bytes // row_bytes), dim=1)
        parts = [
            checkpoint(self._block, block, predictions, tokens, sigma, use_reentrant=False)
            for block in blocks
        ]
        blank, label, duration = (torch.cat(each, dim=1) for each in zip(*parts, strict=True))
        return self._arcs_of(blank, label, duration)

    def _block(
        self,
        frames: Float[Tensor, "batch frames width"],
        predictions: Float[Tensor, "batch places width"],
        tokens: Int[Tensor, "batch tokens"],
        sigma: float,
    ) -> tuple[
        Float[Tensor, "batch frames places"],
        Float[Tensor, "batch frames places"],
        Float[Tensor, "batch frames places durations"],
    ]:
        """Return log-probabilities of blank, of the next token, and of durations."""
        of_tokens, of_durations = self.logits(frames[:, :, None], predictions[:, None])
        of_tokens = of_tokens.float() if of_tokens.dtype.itemsize < 4 else of_tokens
        total = of_tokens.logsumexp(-1) + sigma
        # After the last token there is no next one: blank stands there, and no path takes it.
        following = F.pad(tokens, (0, 1), value=self.blank)[:, None, :, None]
        label = of_tokens.gather(-1, following.expand(-1, of_tokens.shape[1], -1, 1))[..., 0]
        return of_tokens[..., self.blank] - total, label - total, of_durations.log_softmax(-1)

    def _arcs_of(
        self,
        blank: Float[Tensor, "batch frames places"],
        label: Float[Tensor, "batch frames places"],
        duration: Float[Tensor, "batch frames places durations"],
    ) -> Arcs:
        if not self.durations:
            return Arcs(
                blanks=blank[None], labels=label[None], blank_durations=(1,), label_durations=(0,)
            )
        by_duration = duration.movedim(-1, 0)
        is_long = [i for i, d in enumerate(self.durations) if d > 0]
        return Arcs(
            blanks=blank + by_duration[is_long],
            labels=label + by_duration,
            blank_durations=tuple(self.durations[i] for i in is_long),
            label_durations=self.durations,
        )
