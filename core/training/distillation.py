"""Learning from the unpruned model: its output distribution, and its hidden states layer by layer.

The layer term and the matching that keeps the order of layers are CoFi's (Xia et al., 2022), over a
Conformer's blocks.

Shapes: B batch, T frames, N real frames, D teacher's width, K student's width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from core.config.trial import DistillationConfig
from core.conformer.masking import Folded, gated_forward
from core.conformer.model import Conformer, Output
from core.data.batching import Batch
from core.distributed import part_of_mean, whole


@dataclass(frozen=True, kw_only=True, slots=True)
class Student:
    """A student's output, and how it stands to the teacher."""

    output: Output
    width: Int[Tensor, " kept"]
    """Which of the teacher's units of width the student has."""
    alive: tuple[bool, ...]
    """Which blocks still hold a module; the others are copies of their input but for a norm."""
    blocks: tuple[int, ...] | None = None
    """Which of the teacher's blocks the student's are; None for all of them."""


class Distillation(nn.Module):
    """The frozen teacher, and the projection through which hidden states are compared."""

    def __init__(self, teacher: Conformer, config: DistillationConfig) -> None:
        super().__init__()
        self.config = config
        self.teacher = teacher.eval().requires_grad_(requires_grad=False)
        self.projection = nn.Linear(teacher.shape.width, teacher.shape.width)
        nn.init.eye_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def losses(
        self,
        features: Float[Tensor, "batch mel_frames mels"],
        num_frames: Int[Tensor, " batch"],
        student: Student,
        *,
        taught: Output | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """`logit` and `layer`; terms of weight 0 are left out; without any, the teacher rests.

        What the teacher says may be handed in, where several students hear the same.
        """
        config = self.config
        taught = taught or self.taught(features, num_frames)
        if taught is None:
            return {}
        terms = {}
        if config.logit_weight > 0:
            terms["logit"] = logit_loss(
                student.output.logits, taught.logits, taught.is_frame, config.temperature
            )
        if config.layer_weight > 0:
            terms["layer"] = self._layer_loss(taught, student)
        return terms

    @torch.no_grad()
    def taught(
        self,
        features: Float[Tensor, "batch mel_frames mels"],
        num_frames: Int[Tensor, " batch"],
    ) -> Output | None:
        """What the teacher says; nothing where no term asks for it."""
        if self.config.logit_weight == 0 and self.config.layer_weight == 0:
            return None
        output: Output = self.teacher(features, num_frames)
        return output

    def train(self, mode: bool = True) -> "Distillation":  # noqa: FBT001, FBT002 - torch's signature
        """The teacher stays in evaluation mode, whatever the student does."""
        super().train(mode)
        self.teacher.eval()
        return self

    def _layer_loss(self, taught: Output, student: Student) -> Float[Tensor, ""]:
        layers = taught_layers(len(taught.hidden), self.config.layers)
        frames = taught.is_frame.flatten().nonzero().squeeze(1)  # asked once for all layers
        wanted = [_real(taught.hidden[i], frames) for i in layers]  # (N, D)
        weight = self.projection.weight.index_select(1, student.width)
        seen = [
            F.linear(_real(hidden, frames), weight, self.projection.bias)
            for hidden in student.output.hidden
        ]
        if self.config.matching == "fixed":
            matches = same_blocks(layers, student.blocks)
        else:
            with torch.no_grad():
                distances = torch.tensor([[F.mse_loss(s, w) for s in seen] for w in wanted])
            distances = whole(part_of_mean(distances, len(wanted[0])))
            matches = ordered_matches(distances, student.alive)
        pairs = [F.mse_loss(seen[j], wanted[i]) for i, j in matches]
        return (
            part_of_mean(torch.stack(pairs).sum(), len(wanted[0]))
            if pairs
            else weight.new_zeros(())
        )


def _real(
    hidden: Float[Tensor, "batch time width"], frames: Int[Tensor, " real"]
) -> Float[Tensor, "real width"]:
    return hidden.flatten(0, 1).index_select(0, frames).float()


def taught_layers(num_blocks: int, layers: int) -> list[int]:
    """Blocks of the teacher that are taught: equally spaced, ending with the last."""
    count = min(layers, num_blocks)
    return [-(-(i + 1) * num_blocks // count) - 1 for i in range(count)]


def same_blocks(layers: Sequence[int], blocks: Sequence[int] | None) -> list[tuple[int, int]]:
    """Each taught layer and the student's block that was it; layers that are gone go without."""
    if blocks is None:
        return list(enumerate(layers))
    return [(i, blocks.index(layer)) for i, layer in enumerate(layers) if layer in blocks]


def ordered_matches(
    distances: Float[Tensor, "taught blocks"], alive: Sequence[bool]
) -> list[tuple[int, int]]:
    """For each taught layer, from the last, the nearest living block before the one matched last.

    A taught layer for which no block is left goes without a match.
    """
    matches = []
    last = distances.shape[1]
    for i in reversed(range(distances.shape[0])):
        candidates = [j for j in range(last) if alive[j]]
        if not candidates:
            break
        last = min(candidates, key=lambda j: float(distances[i, j]))
        matches.append((i, last))
    return matches


def logit_loss(
    student: Float[Tensor, "batch time vocabulary"],
    teacher: Float[Tensor, "batch time vocabulary"],
    is_frame: Bool[Tensor, "batch time"],
    temperature: float,
    *,
    class_weights: Float[Tensor, " vocabulary"] | None = None,
) -> Float[Tensor, ""]:
    """Divergence of the student from the teacher, a frame, both softened.

    With class weights, from the teacher's distribution times these, made to sum to 1 again.
    """
    wanted = F.log_softmax(teacher[is_frame].float() / temperature, dim=-1)
    if class_weights is not None:
        wanted = F.log_softmax(wanted + class_weights.log(), dim=-1)
    given = F.log_softmax(student[is_frame].float() / temperature, dim=-1)
    divergence = F.kl_div(given, wanted, reduction="sum", log_target=True)
    # Gradients shrink as 1 / temperature**2; undo that, so that the weight keeps its meaning.
    mean = temperature**2 * divergence / is_frame.sum().clamp(min=1)
    return part_of_mean(mean, is_frame.sum())


def gated_loss(model: Conformer) -> Callable[[Folded, Batch], Float[Tensor, ""]]:
    """CTC of a model under gates, on a batch."""

    def loss(folded: Folded, batch: Batch) -> Float[Tensor, ""]:
        output = gated_forward(model, batch.features, batch.num_frames, folded)
        return ctc_loss(output, batch.tokens, batch.num_tokens)

    return loss


def ctc_loss(
    output: Output, tokens: Int[Tensor, "batch tokens"], num_tokens: Int[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """Mean over utterances of the loss a token; blank is 0."""
    log_probabilities = F.log_softmax(output.logits.float(), dim=-1).transpose(0, 1)
    mean = F.ctc_loss(
        log_probabilities, tokens, output.num_frames, num_tokens, blank=0, zero_infinity=True
    )
    return part_of_mean(mean, len(num_tokens))
