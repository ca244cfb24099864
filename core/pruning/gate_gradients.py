"""Gradients of the loss with respect to open gates, one per unit.

Shapes: U units of an axis, B utterances of a batch.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from core.conformer.axes import Axis, Mask
from core.conformer.masking import Folded, fold, named_tensors
from core.conformer.model import Conformer
from core.data.batching import Batch

OPEN: Mask = {}

Loss = Callable[[Folded, Batch], Float[Tensor, ""]]


def fisher(
    model: Conformer,
    axes: Sequence[Axis],
    batches: Iterable[Batch],
    loss: Loss,
    *,
    mask: Mask = OPEN,
) -> dict[str, Float[Tensor, " _"]]:
    """Return the gates' diagonal Fisher information: the mean of (d loss / d gate)^2.

    Gradients are taken one utterance at a time, as the square of a batch's mean gradient would be
    another quantity (Kwon et al., 2022).

    Args:
        model: the model under its gates.
        axes: the axes whose gates get a score.
        batches: speech with its words.
        loss: of the folded model on a batch.
        mask: gates at which gradients are taken; open by default.
    """
    # Two utterances with gradients 1 and -1: the mean of squares is 1, the square of the mean 0.
    sums = {axis.name: torch.zeros(axis.size, dtype=torch.float64) for axis in axes}
    count = 0
    for utterance in split_utterances(batches):
        for name, gradient in gate_gradients(model, axes, utterance, loss, mask=mask).items():
            sums[name] += gradient.double().square().cpu()
        count += 1
    return {name: values / max(1, count) for name, values in sums.items()}


def gate_gradients(
    model: Conformer,
    axes: Sequence[Axis],
    batch: Batch,
    loss: Loss,
    *,
    mask: Mask = OPEN,
) -> dict[str, Float[Tensor, " _"]]:
    """Return the gradients of the loss with respect to the gates of a mask.

    Args:
        model: the model under its gates.
        axes: the axes whose gates get a gradient.
        batch: speech with its words.
        loss: of the folded model on a batch.
        mask: gates at which gradients are taken; open by default.
    """
    device = model.device
    gates = {
        axis.name: mask.get(axis.name, torch.ones(axis.size)).to(device).clone().requires_grad_()
        for axis in axes
    }
    value = loss(fold(named_tensors(model), model.axes(), gates), batch)
    # Units of a closed module are not part of the graph: their gradients are materialized as 0.
    gradients = torch.autograd.grad(
        value, list(gates.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(gates, gradients, strict=True))


def split_utterances(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield each utterance in a batch of its own."""
    for batch in batches:
        yield from batch.parts(len(batch.ids))
