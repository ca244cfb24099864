"""Sensitivity tables by the Fisher information: one pass over the speech, forward and backward.

To second order, a change dW of a consumer moves the distribution over tokens by

    KL = tr(F dW H dW^T) / 2   nats a frame,

with H = X^T X of its inputs and F the mean of g g^T over its rows, g being the gradient of
-log p(label) with respect to its output, of a label drawn from the model's own distribution. This
is the Fisher information as a Kronecker product (K-FAC: Martens and Grosse, 2015), used for whole
structures by LLM Surgeon (van der Ouderaa et al., arXiv 2312.17244). Structured OBS gives the
smallest such KL after each removal, so order and table of an axis come from one elimination.

The residual width has many consumers: every module reads it, through its layer norm, and so does
the head. Without a unit of it each of these readers is refitted to what is left of its inputs, so
each has an error like that above, and they add up. F enters only as M = W^T F W, which is the mean
of g g^T for g the gradient with respect to the reader's inputs. Units go from all readers at once.

That sum is too small beside the tables of other axes: what a consumer misses is made up for by the
parts behind it, but every part misses the same units of the width. WIDTH_WEIGHT is for that.

No transcript is read: the labels are drawn.

Shapes: I inputs of a consumer, with a last input of ones for the bias; O its outputs; D width.
"""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor, nn

from core.conformer.axes import Axis
from core.conformer.masking import named_tensors
from core.conformer.model import Conformer
from core.pruning.ablation import identity_fold
from core.pruning.calibration import Calibration, Consumer, iterate_grams, prunable_consumers
from core.pruning.fisher import ReaderSums, fisher_sums
from core.pruning.obs import joint_removal_order
from core.pruning.sensitivity import (
    SensitivityTable,
    consumer_columns,
    consumer_order,
    unit_table,
)
from core.pruning.space import Space

WIDTH_WEIGHT = 6.0
"""Factor of the sum, found on one teacher of the demo and one of `commands`: with half of an axis's
units removed and all repaired, the KL was 3 and 6 times the sum for the width, and a third and once
the table's for heads and channels."""


def fisher_tables(
    model: Conformer, space: Space, speech: Calibration, *, seed: int
) -> Iterator[SensitivityTable]:
    """Yield the tables of the width and of each axis that has a consumer, one level for each unit.

    Args:
        model: the unpruned model; its gradients are not touched.
        space: which axes may lose units.
        speech: walked through twice.
        seed: of the labels that are drawn.
    """
    targets = prunable_consumers(space)
    widths = [axis for axis in space.units if axis.kind == "width"]
    if not targets and not widths:
        return
    norms = reader_norms(model) if widths else []
    modules = [consumer.module for consumer in targets]
    sums = fisher_sums(model, speech, modules=modules, norms=norms, seed=seed)
    # The width comes first: its hundred matrices are gone before those of 4,096 inputs are there.
    for axis in widths:
        yield _width_table(axis, sums.readers, sums.count)
    for consumer, gram in iterate_grams(model, identity_fold(model), targets, speech):
        products = sums.outputs.pop(consumer.module)
        columns = consumer_columns(named_tensors(model), consumer)
        yield _consumer_table(consumer, columns, gram.cpu(), products.double(), sums.count)


def _consumer_table(
    consumer: Consumer,
    columns: Float[Tensor, "outputs inputs"],
    gram: Float[Tensor, "inputs1 inputs1"],
    products: Float[Tensor, "outputs outputs"],
    count: int,
) -> SensitivityTable:
    """Return the table of an axis from H of its consumer's inputs and the sum of g g^T."""
    weight = products / gram[-1, -1]  # the number of rows: of a convolution's image, many a frame
    order = consumer_order(gram, columns, columns.T @ weight @ columns, consumer.axis.size)
    return unit_table(consumer.axis, order, 0.5 / count)


def _width_table(axis: Axis, readers: list[ReaderSums], count: int) -> SensitivityTable:
    """Return the table of the residual width, one level for each unit.

    Args:
        axis: the width.
        readers: sums of all that read it. The list is emptied.
        count: number of distributions of these sums.
    """
    matrices = []
    while readers:
        reader = readers.pop()
        matrices.append((reader.gram, reader.products.div_(count)))
    order = joint_removal_order(matrices, num_units=axis.size)
    return unit_table(axis, order, WIDTH_WEIGHT * 0.5 / count)


def reader_norms(model: Conformer) -> list[nn.Module]:
    """Return the norms whose outputs are read: each module's own, and the last one, of the head.

    Without blocks the head reads what the front end gives.
    """
    blocks = model.typed_blocks()
    if not blocks:
        return [model.frontend]
    inside = [part.norm for block in blocks for part in block.parts()]
    return [*inside, *(block.norm for block in blocks[-1:])]
