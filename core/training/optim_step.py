"""One optimizer step: losses by name, gradients over micro-batches and ranks, autocast."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from core.data.batching import Batch
from core.distributed import current, together
from core.training.distillation import Distillation
from core.training.optimizers import set_rate

Losses = dict[str, Tensor]
"""Losses by name; gradients are those of `total`."""


def optimizer_step(
    batch: Batch,
    losses: Callable[[Batch], Losses | Iterator[Losses]],
    *,
    parts: int,
    optimizer: torch.optim.Optimizer,
    rate: float,
    clip: float,
) -> dict[str, Tensor]:
    """Take one optimizer step on a batch's losses; return them, detached.

    Args:
        batch: of this rank and all others.
        losses: computes them on a part of the batch.
        parts: micro-batches of the batch.
        optimizer: of the parameters.
        rate: the learning rate of this step.
        clip: the largest norm of the gradients.
    """
    set_rate(optimizer, rate)
    optimizer.zero_grad(set_to_none=True)
    losses_ = accumulate_gradients(batch, losses, parts=parts, optimizers=[optimizer])
    # After the sum over ranks: the norm is that of the whole batch's gradient.
    nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], clip)
    optimizer.step()
    return losses_


def accumulate_gradients(
    batch: Batch,
    losses: Callable[[Batch], Losses | Iterator[Losses]],
    *,
    parts: int,
    optimizers: Iterable[torch.optim.Optimizer],
) -> dict[str, Tensor]:
    """Add up the gradients of a batch's losses, part by part; return the losses, detached.

    If `losses` yields several, their gradients are added one after the other, and the activations
    of each are freed before the next. Every rank takes its share of each part; the sums over ranks
    equal those of a single rank.

    Example: a batch of 8 utterances, 2 parts and 2 ranks. A part of 4 counts 4 / 8 of the mean;
    each rank computes 2 utterances of it.

    Args:
        batch: of all ranks.
        losses: computes them on a part of the batch.
        parts: micro-batches of the batch.
        optimizers: of the parameters whose gradients are summed over ranks.
    """
    ranks = current()
    sums: dict[str, Tensor] = {}
    for part in batch.parts(parts):
        share = len(part.ids) / len(batch.ids)
        own = part.share(ranks.rank, ranks.size)
        # A rank without utterances computes a loss that counts 0: the other ranks wait for it.
        with together(replace(ranks, is_idle=own is None)):
            part_losses = losses(own or part.parts(len(part.ids))[0])
            for terms in [part_losses] if isinstance(part_losses, dict) else part_losses:
                (share * terms["total"]).backward()
                for name, loss in terms.items():
                    sums[name] = sums.get(name, 0.0) + share * loss.detach()
    # One exchange for the whole batch; parts before it only add to `grad`.
    gradients = [p.grad for o in optimizers for group in o.param_groups for p in group["params"]]
    ranks.add_up([*(grad for grad in gradients if grad is not None), *sums.values()])
    return sums


def weighted_total(terms: dict[str, Tensor], distillation: Distillation) -> dict[str, Tensor]:
    """Return the terms, and their weighted sum as `total`."""
    config = distillation.config
    weights = {
        "task": config.task_weight,
        "logit": config.logit_weight,
        "layer": config.layer_weight,
    }
    total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    return {"total": total, **terms}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    is_half = precision == "bf16" or (precision == "auto" and has_bf16(device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_half)


def has_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16 matrix products; without, bf16 is slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # The oldest version of torch that we support has no public function for this.
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # noqa: SLF001
