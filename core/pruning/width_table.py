"""The sensitivity table of the residual width, by the Fisher information of all that read it.

The residual stream is read by every module, through its layer norm, and by the head. Without a unit
of the width each of these readers is refitted to what is left of its inputs, so each has an error
like that of a consumer (core/pruning/sensitivity.py), and they add up:

    KL = sum over readers of tr(F dW H dW^T) / 2   nats a frame.

F enters only as M = W^T F W, which is the mean of g g^T for g the gradient of -log p(label) with
respect to the reader's inputs. So one forward and one backward pass give all that is needed, and
structured OBS removes units from all readers at once.

That sum is too small beside the tables of other axes: what a consumer misses is made up for by the
parts behind it, but every part misses the same units of the width. WIDTH_WEIGHT is for that.

Shapes: D width, and a last input of ones for the bias; B batch, T frames.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from core.conformer.axes import Axis
from core.conformer.model import Conformer
from core.pruning.calibration import Calibration, gram
from core.pruning.fisher import label_gradients, watch_outputs
from core.pruning.obs import joint_removal_order
from core.pruning.sensitivity import SensitivityTable, unit_table

WIDTH_WEIGHT = 6.0
"""Factor of the sum, found on one teacher of the demo and one of `commands`: with half of an axis's
units removed and all repaired, the KL was 3 and 6 times the sum for the width, and a third and once
the table's for heads and channels."""


@dataclass(kw_only=True, slots=True)
class _Sums:
    """Of one reader: X^T X of its inputs and a column of ones, and the sum of g g^T."""

    gram: Float[Tensor, "inputs1 inputs1"]
    products: Float[Tensor, "inputs1 inputs1"]

    @classmethod
    def zeros(cls, size: int) -> "_Sums":
        return cls(
            gram=torch.zeros(size, size, dtype=torch.float64),
            products=torch.zeros(size, size, dtype=torch.float64),
        )

    def add(
        self, x: Float[Tensor, "frames inputs"], gradient: Float[Tensor, "frames inputs"]
    ) -> None:
        rows, g = x.double(), gradient.double()
        rows = torch.cat((rows, rows.new_ones(len(rows), 1)), 1)
        self.gram += gram(rows).cpu()
        # The column of ones is never removed, so its own products are not needed.
        self.products[:-1, :-1] += gram(g).cpu()


def fisher_width_table(
    model: Conformer, axis: Axis, speech: Calibration, *, seed: int
) -> SensitivityTable:
    """Return the table of the residual width, one level for each unit.

    Args:
        model: the unpruned model; its gradients are not touched.
        axis: the width.
        speech: calibration speech, walked through once.
        seed: of the labels that are drawn.
    """
    sums, num_frames = _reader_sums(model, speech, seed=seed)

    def readers() -> Iterator[tuple[Tensor, Tensor]]:
        while sums:
            reader = sums.pop()
            yield reader.gram, reader.products.div_(num_frames)  # no copy of a hundred matrices

    order = joint_removal_order(readers(), num_units=axis.size)
    return unit_table(axis, order, WIDTH_WEIGHT * 0.5 / num_frames)


def _reader_sums(model: Conformer, speech: Calibration, *, seed: int) -> tuple[list[_Sums], int]:
    """Return the sums of all readers over real frames, and the number of distributions."""
    norms = reader_norms(model)
    sums = [_Sums.zeros(model.shape.width + 1) for _ in norms]
    total = 0
    for outputs, gradients, is_frame, count in label_gradients(
        model, speech, lambda: watch_outputs(norms), seed=seed
    ):
        total += count
        for reader, x, gradient in zip(sums, outputs, gradients, strict=True):
            reader.add(x.detach()[is_frame], gradient[is_frame])
    return sums, total


def reader_norms(model: Conformer) -> list[nn.Module]:
    """Return the norms whose outputs are read: each module's own, and the last one, of the head.

    Without blocks the head reads what the front end gives.
    """
    blocks = model.typed_blocks()
    if not blocks:
        return [model.frontend]
    inside = [part.norm for block in blocks for part in block.parts()]
    return [*inside, *(block.norm for block in blocks[-1:])]
