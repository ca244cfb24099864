"""Optimizers and their learning rates."""

import math
from collections.abc import Iterable

import torch
from torch import nn


def primal(
    parameters: Iterable[nn.Parameter], *, learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """Return AdamW for weights, fused: updates of many small tensors would take 10 % of a step."""
    return torch.optim.AdamW(
        parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True
    )


def warmup_cosine(step: int, *, steps: int, warmup_share: float, floor: float = 0.02) -> float:
    """Return a factor on the peak rate: linear over the warm-up, then half a cosine to the floor.

    Args:
        step: from 0.
        steps: of the whole schedule.
        warmup_share: share of the steps in which the factor rises to 1.
        floor: the last factor.
    """
    warmup = warmup_share * steps
    if step < warmup:
        # 100 steps, warm-up 0.1: 1/11 at step 0, 1 at step 10, 0.51 at step 55, 0.02 at step 99. No
        # step has a rate of 0.
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1.0, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
