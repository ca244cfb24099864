"""How the loss feels each unit: derivatives with respect to gates that stand open.

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
    """Mean over utterances of (d loss / d gate)^2: the diagonal of the gates' Fisher information.

    An utterance at a time: squares of a batch's mean would be something else (Kwon et al., 2022).
    """
    sums = {axis.name: torch.zeros(axis.size, dtype=torch.float64) for axis in axes}
    count = 0
    for utterance in one_by_one(batches):
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
    """The loss's derivatives with respect to the gates of a mask, which are open by default."""
    device = model.head.weight.device
    gates = {
        axis.name: mask.get(axis.name, torch.ones(axis.size)).to(device).clone().requires_grad_()
        for axis in axes
    }
    value = loss(fold(named_tensors(model), model.axes(), gates), batch)
    found = torch.autograd.grad(
        value, list(gates.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(gates, found, strict=True))


def one_by_one(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Their utterances, each in a batch of its own."""
    for batch in batches:
        yield from batch.parts(len(batch.ids))
