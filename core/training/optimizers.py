"""Optimizers and their rates."""

import math
from collections.abc import Iterable

import torch
from torch import nn


def primal(
    parameters: Iterable[nn.Parameter], *, learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """For weights; fused, as its many small tensors would otherwise cost a step's tenth."""
    return torch.optim.AdamW(
        parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True
    )


def warmed_cosine(step: int, *, steps: int, warmup_share: float, floor: float = 0.02) -> float:
    """Factor on the peak rate: linear up over the warm-up, then half a cosine down to the floor."""
    warmup = warmup_share * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1.0, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
