"""Distillation from the unpruned model: its output distribution and its hidden states by layer.

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

from core.config.trial import DistillationConfig, LossConfig
from core.conformer.masking import Folded, gated_forward
from core.conformer.model import Conformer
from core.conformer.output import Output
from core.data.batching import Batch
from core.decoders.task_loss import lattice_divergence, task_loss
from core.distributed import part_of_mean, whole

Transcripts = tuple[Int[Tensor, "batch tokens"], Int[Tensor, " batch"]]
"""Tokens, and how many there are of each utterance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Student:
    """A student's output, and how its parts correspond to the teacher's."""

    output: Output
    width: Int[Tensor, " kept"] | None
    """Numbers of the teacher's units of width that the student has; None for all of them."""
    is_active: Bool[Tensor, " blocks"]
    """Whether each block still holds a module; one without computes only a norm of its input."""
    blocks: tuple[int, ...] | None = None
    """Numbers of the teacher's blocks that the student has; None for all of them."""


class Distillation(nn.Module):
    """The frozen teacher, and the projection through which hidden states are compared."""

    def __init__(self, teacher: Conformer, config: DistillationConfig) -> None:
        super().__init__()
        self.config = config
        self.teacher = teacher.eval().requires_grad_(requires_grad=False)
        if config.teacher_precision == "bf16":
            self.teacher.to(torch.bfloat16)
        width = teacher.shape.width
        self.projection = nn.Linear(width, width, device=teacher.device)
        # The identity: hidden states of student and teacher are at first compared as they are.
        nn.init.eye_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def losses(
        self,
        features: Float[Tensor, "batch mel_frames mels"],
        num_frames: Int[Tensor, " batch"],
        student: Student,
        *,
        targets: Output | None = None,
        transcripts: Transcripts | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the losses `logit` and `layer`, without those of weight 0.

        Args:
            features: of the batch.
            num_frames: mel frames of each utterance.
            student: its output on this batch.
            targets: the teacher's output on this batch, where several students share it; it is
                computed if None.
            transcripts: tokens and their numbers, along which transducers are compared.
        """
        config = self.config
        tokens, num_tokens = transcripts or (None, None)
        targets = targets or self.teacher_output(features, num_frames, tokens)
        if targets is None:
            return {}
        terms = {}
        if config.logit_weight > 0:
            terms["logit"] = self._output_loss(targets, student.output, num_tokens)
        if config.layer_weight > 0:
            terms["layer"] = self._layer_loss(targets, student)
        return terms

    @torch.no_grad()
    def teacher_output(
        self,
        features: Float[Tensor, "batch mel_frames mels"],
        num_frames: Int[Tensor, " batch"],
        tokens: Int[Tensor, "batch tokens"] | None = None,
    ) -> Output | None:
        """Return the teacher's output, or None if all terms have a weight of 0."""
        if self.config.logit_weight == 0 and self.config.layer_weight == 0:
            return None
        features = features.to(self.teacher.dtype)
        output: Output = self.teacher(features, num_frames, tokens=tokens)
        return output

    def train(self, mode: bool = True) -> "Distillation":  # noqa: FBT001, FBT002 - torch's signature
        """The teacher stays in evaluation mode, whatever the student does."""
        super().train(mode)
        self.teacher.eval()
        return self

    def _output_loss(
        self, targets: Output, output: Output, num_tokens: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, ""]:
        """Return the divergence of what decoders give: the sum over the decoders."""
        terms = []
        if output.ctc_logits is not None and targets.ctc_logits is not None:
            temperature = self.config.temperature
            frames = output.frame_numbers()
            terms.append(logit_loss(output.logits, targets.logits, frames, temperature))
        if output.lattice and targets.lattice and num_tokens is not None:
            lattices = (output.lattice, targets.lattice)
            terms.append(lattice_divergence(*lattices, targets.num_frames, num_tokens))
        return torch.stack(terms).sum()

    def _layer_loss(self, targets: Output, student: Student) -> Float[Tensor, ""]:
        layers = target_layers(len(targets.hidden), self.config.layers)
        frames = student.output.frame_numbers()
        target_states = [_real(targets.hidden[i], frames) for i in layers]  # (N, D)
        # (D, K): a student with units 3 and 7 of the teacher's width uses columns 3 and 7.
        weight = self.projection.weight
        weight = weight if student.width is None else weight.index_select(1, student.width)
        student_states = [
            F.linear(_real(hidden, frames), weight, self.projection.bias)
            for hidden in student.output.hidden
        ]
        if not student_states:
            return weight.new_zeros(())
        if self.config.matching == "fixed":
            pairs = [
                F.mse_loss(student_states[j], target_states[i])
                for i, j in same_blocks(layers, student.blocks)
            ]
        else:
            pairs = _matched_losses(student_states, target_states, student.is_active)
        return part_of_mean(torch.stack([weight.new_zeros(()), *pairs]).sum(), len(frames))


def _matched_losses(
    student_states: Sequence[Float[Tensor, "real width"]],
    target_states: Sequence[Float[Tensor, "real width"]],
    is_active: Bool[Tensor, " blocks"],
) -> list[Float[Tensor, ""]]:
    """Return the mean square difference of each target layer from the block that it is matched to.

    Which block that is stays on the device, so nothing waits for it.
    """
    with torch.no_grad():
        rows = [
            torch.stack([F.mse_loss(states, target) for states in student_states])
            for target in target_states
        ]
    # Over the frames of all ranks, so that every rank matches the same blocks.
    distances = whole(part_of_mean(torch.stack(rows), len(target_states[0])))
    blocks, is_matched = ordered_matches(
        distances, is_active.to(distances.device, non_blocking=True)
    )
    triples = zip(is_matched, _chosen(student_states, blocks), target_states, strict=True)
    return [torch.where(is_match, F.mse_loss(s, t), 0.0) for is_match, s, t in triples]


def _chosen(
    states: Sequence[Float[Tensor, "real width"]], numbers: Int[Tensor, " targets"]
) -> Sequence[Float[Tensor, "real width"]]:
    """Return the states of these numbers; on a device copies, as numbers stay there."""
    if numbers.device.type == "cpu":
        return [states[number] for number in numbers.tolist()]
    return list(torch.stack(list(states)).index_select(0, numbers))


def _real(
    hidden: Float[Tensor, "batch time width"], frames: Int[Tensor, " real"]
) -> Float[Tensor, "real width"]:
    return hidden.flatten(0, 1).index_select(0, frames).float()


def target_layers(num_blocks: int, layers: int) -> list[int]:
    """Return the teacher's blocks that are targets: equally spaced, ending with the last.

    For example, 3 layers of 8 blocks are blocks 2, 5 and 7, counted from 0.
    """
    count = min(layers, num_blocks)
    # -(-a // b) rounds up; blocks count from 0.
    return [-(-(i + 1) * num_blocks // count) - 1 for i in range(count)]


def same_blocks(layers: Sequence[int], blocks: Sequence[int] | None) -> list[tuple[int, int]]:
    """Match each target layer to the student's block made from it; removed blocks have no match."""
    if blocks is None:
        return list(enumerate(layers))
    return [(i, blocks.index(layer)) for i, layer in enumerate(layers) if layer in blocks]


def ordered_matches(
    distances: Float[Tensor, "targets blocks"], is_active: Bool[Tensor, " blocks"]
) -> tuple[Int[Tensor, " targets"], Bool[Tensor, " targets"]]:
    """Match target layers, from the last on, each to the nearest of the earlier active blocks.

    For example, if the last target is matched to block 4, the one before it is matched to the
    nearest of the active blocks 0 to 3.

    Returns:
        The block of each target layer, and whether it has one: a target without a remaining block
        has no match, and neither do those before it.
    """
    numbers = torch.arange(distances.shape[1], device=distances.device)
    remaining, blocks, is_matched = is_active, [], []
    # From the last on: earlier targets lie before the block of the later one.
    for row in distances.flip(0):
        block = torch.where(remaining, row, torch.inf).argmin()
        is_matched.append(remaining.any())
        blocks.append(block)
        # Without a match nothing remains anyway.
        remaining = remaining & (numbers < block)
    return torch.stack(blocks).flip(0), torch.stack(is_matched).flip(0)


def logit_loss(
    student: Float[Tensor, "batch time vocabulary"],
    teacher: Float[Tensor, "batch time vocabulary"],
    frames: Int[Tensor, " real"],
    temperature: float,
    *,
    class_weights: Float[Tensor, " vocabulary"] | None = None,
) -> Float[Tensor, ""]:
    """Return the KL divergence of the student from the teacher per frame, at a temperature.

    Args:
        student: its logits.
        teacher: its logits.
        frames: the numbers of the real frames, which are compared.
        temperature: by which both logits are divided.
        class_weights: multiply the teacher's distribution, which is then normalized again.
    """
    target = F.log_softmax(_real(teacher, frames) / temperature, dim=-1)
    if class_weights is not None:
        target = F.log_softmax(target + class_weights.log(), dim=-1)
    prediction = F.log_softmax(_real(student, frames) / temperature, dim=-1)
    divergence = F.kl_div(prediction, target, reduction="sum", log_target=True)
    # Gradients shrink as 1 / temperature**2; undo that, so that the weight's effect stays the same.
    mean = temperature**2 * divergence / max(1, len(frames))
    return part_of_mean(mean, len(frames))


def gated_loss(
    model: Conformer, config: LossConfig
) -> Callable[[Folded, Batch], Float[Tensor, ""]]:
    """Return a function that computes the task's loss of a model under gates on a batch."""

    def loss(folded: Folded, batch: Batch) -> Float[Tensor, ""]:
        output = gated_forward(model, batch.features, batch.num_frames, folded, tokens=batch.tokens)
        return task_loss(output, batch.tokens, batch.num_tokens, config)

    return loss
