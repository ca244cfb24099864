"""Sums of products of inputs, and layers that are refitted to targets by them.

Rows are gathered first: a layer of 4,096 inputs has sums of 134 MB, and a batch a few hundred rows.

Shapes: I inputs of a layer, with a last one of ones for its bias; O its outputs.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

RIDGE = 1e-3
"""Share of the mean of the inputs' squares by which a layer is drawn towards itself."""
SMALL = 1e-12
"""Least mean square: a layer's inputs may all be 0."""
STRIP_INPUTS = 512
"""Rows of X^T X that are computed at once."""
SUMMED_ROWS = 2048
"""Rows whose products are summed at once: a batch has a few hundred, and its sums for a layer of
4,096 inputs, 134 MB, would be read and written for each."""


class WaitingRows:
    """Rows of some tensors that are in no sum yet."""

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, ...]] = []

    def add(self, *tensors: Float[Tensor, "rows _"]) -> None:
        """Let the rows of a batch wait, those of each tensor."""
        self._batches.append(tensors)

    def take(self, *, least: int) -> tuple[Tensor, ...] | None:
        """Return all that waits, one after the other, if it has at least so many rows."""
        if sum(len(tensors[0]) for tensors in self._batches) < least:
            return None
        together = tuple(torch.cat(rows) for rows in zip(*self._batches, strict=True))
        self._batches.clear()
        return together


class GramSum:
    """X^T X in double precision, X having a last column of ones, summed as rows come."""

    def __init__(self) -> None:
        self._waiting = WaitingRows()
        self._total: Tensor | None = None

    def add(self, x: Float[Tensor, "rows inputs"]) -> None:
        """Add the rows of a batch."""
        self._waiting.add(x)
        self._sum(least=SUMMED_ROWS)

    def total(self) -> Float[Tensor, "inputs1 inputs1"]:
        """Return the sum over all rows, of which there is at least one."""
        self._sum(least=1)
        assert self._total is not None
        return self._total

    def _sum(self, *, least: int) -> None:
        rows = self._waiting.take(least=least)
        if rows is None:
            return
        # With the ones, the last column holds the sums of the inputs and the number of rows: what
        # a bias needs.
        product = gram(with_ones(rows[0].double()))
        self._total = product if self._total is None else self._total.add_(product)


class LeastSquares:
    """The layer's weights that come nearest to targets, with a ridge towards what they are."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer
        size = layer.in_features + (layer.bias is not None)
        zero = torch.zeros((), dtype=torch.float64, device=layer.weight.device)
        self._gram = zero.new_zeros(size, size)
        self._cross = zero.new_zeros(layer.out_features, size)
        self._waiting = WaitingRows()
        """Inputs, and what the layer misses."""

    def add(
        self, inputs: Float[Tensor, "frames inputs"], targets: Float[Tensor, "frames outputs"]
    ) -> None:
        """Add the frames of a batch."""
        missing = targets - self.layer(inputs)
        if self.layer.bias is not None:
            inputs = with_ones(inputs)
        self._waiting.add(inputs, missing)
        self._sum(least=SUMMED_ROWS)

    def _sum(self, *, least: int) -> None:
        rows = self._waiting.take(least=least)
        if rows is None:
            return
        inputs, missing = rows
        # Products are of the model's own precision, and sums of them in double: their rounding,
        # some 1e-6 of the mean square, is nothing beside the ridge of 1e-3.
        self._gram += gram(inputs)
        self._cross += missing.T @ inputs

    def solve(self) -> None:
        """Change the layer to the solution."""
        self._sum(least=1)
        diagonal = self._gram.diagonal()
        diagonal += RIDGE * diagonal.mean().clamp_min(SMALL)
        factor = torch.linalg.cholesky_ex(self._gram).L
        change = torch.cholesky_solve(self._cross.T, factor).T
        columns = self.layer.in_features
        self.layer.weight.add_(change[:, :columns].to(self.layer.weight))
        if self.layer.bias is not None:
            self.layer.bias.add_(change[:, columns].to(self.layer.bias))


def with_ones(x: Float[Tensor, "rows inputs"]) -> Float[Tensor, "rows inputs1"]:
    """Return inputs with a last column of ones, for a bias."""
    return torch.cat((x, x.new_ones(len(x), 1)), 1)


def gram(x: Float[Tensor, "rows inputs"]) -> Float[Tensor, "inputs inputs"]:
    """Return X^T X; of many inputs half is computed, as it is its own transpose."""
    # Of 4,096 inputs in strips of 512: 8 + 7 + ... + 1, that is 36 of 64 squares.
    if x.shape[1] < 2 * STRIP_INPUTS:
        return x.T @ x
    product = x.new_empty(x.shape[1], x.shape[1])
    for begin in range(0, x.shape[1], STRIP_INPUTS):
        end = min(begin + STRIP_INPUTS, x.shape[1])
        product[begin:end, begin:] = x[:, begin:end].T @ x[:, begin:]
        product[end:, begin:end] = product[begin:end, end:].T
    return product
