"""The loss by which a model learns to recognize: of its CTC head, of its transducer, or of both."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from core.config.trial import LossConfig
from core.conformer.output import Output
from core.decoders.ctc import ctc_loss
from core.decoders.lattice import LatticeScores, transducer_loss
from core.distributed import part_of_mean
from core.features.kaldi import real_frames

LEAST = -30.0
"""Log-probability of a class that is never taken."""
USUAL = LossConfig()


def task_loss(
    output: Output,
    tokens: Int[Tensor, "batch tokens"],
    num_tokens: Int[Tensor, " batch"],
    config: LossConfig = USUAL,
) -> Float[Tensor, ""]:
    """Return the mean over utterances of the loss per token.

    Args:
        output: of a forward pass, with the transcripts if the model has a transducer.
        tokens: transcripts.
        num_tokens: of each transcript.
        config: of a transducer's loss.
    """
    if output.lattice is None:
        return ctc_loss(output, tokens, num_tokens)
    on_device = num_tokens.to(tokens.device, non_blocking=True)
    losses = _lattice_losses(output.lattice, output.num_frames, on_device, config)
    # An utterance without words has a loss, too: that of saying blank at every frame.
    mean = part_of_mean((losses / on_device.clamp(min=1)).mean(), len(num_tokens))
    weight = config.ctc_weight
    if output.ctc_logits is None or weight == 0:
        return mean
    return (1 - weight) * mean + weight * ctc_loss(output, tokens, num_tokens)


def _lattice_losses(
    scores: LatticeScores,
    num_frames: Int[Tensor, " batch"],
    num_tokens: Int[Tensor, " batch"],
    config: LossConfig,
) -> Float[Tensor, " batch"]:
    """Return each utterance's loss: RNN-T's, or TDT's with a share of RNN-T's."""
    is_tdt = bool(scores.durations)
    arcs = scores.arcs(sigma=config.sigma if is_tdt else 0.0)
    own = transducer_loss(arcs, num_frames, num_tokens, fastemit=config.fastemit)
    if not is_tdt or config.omega == 0:
        return own
    plain = scores.without_durations().arcs()
    other = transducer_loss(plain, num_frames, num_tokens, fastemit=config.fastemit)
    return (1 - config.omega) * own + config.omega * other


def lattice_divergence(
    student: LatticeScores,
    teacher: LatticeScores,
    num_frames: Int[Tensor, " batch"],
    num_tokens: Int[Tensor, " batch"],
) -> Float[Tensor, ""]:
    """Return the KL divergence of the student from the teacher, the mean over places.

    Three classes are compared at each place: blank, the next token, and all others (Panchapagesan
    et al., arXiv 2011.06110); for TDT the durations, too.

    Args:
        student: its scores along the transcripts.
        teacher: its scores along the same transcripts.
        num_frames: of each utterance.
        num_tokens: of each transcript.
    """
    device, (_, time, places) = student.blank.device, student.blank.shape
    num_frames, num_tokens = (n.to(device, non_blocking=True) for n in (num_frames, num_tokens))
    is_frame = real_frames(num_frames, time)
    is_place = torch.arange(places, device=device) <= num_tokens[:, None]
    inside = is_frame[:, :, None] & is_place[:, None]  # (B, T, P)
    own, target = (_three_classes(scores, num_tokens) for scores in (student, teacher))
    divergence = _summed_divergence(own, target, inside)
    if student.durations:
        divergence = divergence + _summed_divergence(student.duration, teacher.duration, inside)
    return part_of_mean(divergence / inside.sum().clamp(min=1), inside.sum())


def _summed_divergence(
    student: Float[Tensor, "batch frames places classes"],
    teacher: Float[Tensor, "batch frames places classes"],
    inside: Bool[Tensor, "batch frames places"],
) -> Float[Tensor, ""]:
    """Return the KL divergence of the student from the teacher, the sum over places inside."""
    # What lies outside is set to 0 on both sides; picking what lies inside would wait for a device.
    own, target = (x.masked_fill(~inside[..., None], 0.0) for x in (student, teacher))
    return F.kl_div(own, target, reduction="sum", log_target=True)


def _three_classes(
    scores: LatticeScores, num_tokens: Int[Tensor, " batch"]
) -> Float[Tensor, "batch frames places 3"]:
    """Return log-probabilities of blank, of the next token, and of all other tokens."""
    blank, label = scores.blank, scores.label
    # The last place has no next token: its class is as good as empty.
    has_next = torch.arange(blank.shape[2], device=blank.device) < num_tokens[:, None, None]
    label = torch.where(has_next, label, LEAST)
    # A difference from 1 of less than rounding would be log(0).
    rest = (1 - blank.exp() - label.exp()).clamp(min=torch.finfo(blank.dtype).eps).log()
    return torch.stack((blank, label, rest), -1)
