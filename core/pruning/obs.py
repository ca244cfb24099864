"""Structured OBS: the order in which units are removed, and what each removal costs.

Optimal Brain Surgeon (Hassibi and Stork, 1993) for groups of inputs, as in ZipLM (Kurtic et al.,
arXiv 2302.04089). A consumer W of inputs X loses the inputs S of a unit, and all its other columns
are adjusted so that its output changes as little as possible. With H = X^T X and P = H^-1:

    W'     = W - W_S K            where K = (P_SS)^-1 P_S
    growth = tr((P_SS)^-1 M_SS)   where M = W^T F W

`growth` is by how much tr(F (W - W') H (W - W')^T) becomes larger, F weighing the outputs. Units
are removed one at a time, the cheapest first: of two units that duplicate each other, only one is
cheap to remove.

M and P are all that is needed. A removal changes both by matrices of low rank, and these are
collected and added `PENDING` at a time, which is exact: each removal reads only the rows that it
needs. So an axis of 4,096 inputs takes seconds, where one update of everything after the other
takes minutes.

Shapes: I inputs, those that always stay (the bias) last; U units of b inputs; r pending rows.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from core.environment import return_freed_memory

PENDING = 64
"""Rows of low-rank changes that are collected before they are added."""
DROPPED_SHARE = 0.125
"""Share of the units that a matrix holds at which removed ones are taken out: each update costs the
square of what is held, so all together a third of what they cost with nothing taken out."""
DAMPING = 1e-6
"""Share of the mean of H's diagonal that is added to it: inputs may depend on each other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RemovalOrder:
    """All units of an axis, the first one to be removed first."""

    units: Int[Tensor, " units"]
    growth: Float[Tensor, " units"]
    """Growth of the error with each removal, in the same order."""


def removal_order(
    gram: Float[Tensor, "inputs inputs"],
    products: Float[Tensor, "inputs inputs"],
    *,
    num_units: int,
    unit_inputs: int,
    damping: float = DAMPING,
    pending: int = PENDING,
) -> RemovalOrder:
    """Return the order of structured OBS, from the first unit to the last.

    Args:
        gram: H, in double precision.
        products: M = W^T F W, likewise, which is changed.
        num_units: units; unit u has the inputs u * unit_inputs and following.
        unit_inputs: inputs of one unit. Inputs beyond those of all units always stay.
        damping: share of the mean of H's diagonal that is added to it.
        pending: rows of changes that are collected; the result does not depend on it.
    """
    matrices = damped_inverse(gram, damping)[None], products[None]
    return _removal_order(_Elimination(*matrices, num_units, pending, unit_inputs=unit_inputs))


def joint_removal_order(
    readers: list[tuple[Float[Tensor, "inputs inputs"], Float[Tensor, "inputs inputs"]]],
    *,
    num_units: int,
    damping: float = DAMPING,
) -> RemovalOrder:
    """Return the order of units that several consumers read, each unit one input of every consumer.

    A unit is removed from all consumers at once, and each is refitted for itself. The growth is the
    sum over the consumers.

    Args:
        readers: H, in double precision, and M of each consumer. The list is emptied: a hundred
            matrices of 1,024 inputs do not fit into memory twice.
        num_units: units.
        damping: share of the mean of each H's diagonal that is added to it.
    """
    return _removal_order(_Elimination(*_stack(readers, damping), num_units, PENDING))


def _stack(
    readers: list[tuple[Tensor, Tensor]], damping: float
) -> tuple[Float[Tensor, "consumers inputs inputs"], Float[Tensor, "consumers inputs inputs"]]:
    """Return H^-1 and M of all consumers; the list is emptied on the way."""
    first, _ = readers[0]
    inverses = first.new_empty(len(readers), *first.shape)
    products = torch.empty_like(inverses)
    while readers:
        gram, own = readers.pop()
        inverses[len(readers)] = damped_inverse(gram, damping)
        products[len(readers)] = own
        del gram, own
        return_freed_memory()  # or what both were in stays with the program: 1.2 GB in all
    return inverses, products


def damped_inverse(
    gram: Float[Tensor, "inputs inputs"], damping: float
) -> Float[Tensor, "inputs inputs"]:
    """Return the inverse of H with a share of its mean diagonal added."""
    # One copy: of 4,096 inputs a matrix has 134 MB.
    damped = gram.clone()
    damped.diagonal().add_(damping * gram.diagonal().mean())
    factor, fails = torch.linalg.cholesky_ex(damped)
    if fails:  # by rounding, or where no input is ever other than 0
        return torch.linalg.inv(damped)
    del damped
    return torch.cholesky_inverse(factor)


def _removal_order(elimination: "_Elimination") -> RemovalOrder:
    num_units = elimination.num_units
    remaining = torch.ones(num_units, dtype=torch.bool)
    units, growth = [], []
    for _ in range(num_units):
        index = remaining.nonzero().squeeze(1)
        costs = elimination.growth(index)
        best = int(costs.argmin())
        unit = int(index[best])
        units.append(unit)
        growth.append(float(costs[best]))
        remaining[unit] = False
        elimination.remove(unit)
    return RemovalOrder(
        units=torch.tensor(units), growth=torch.tensor(growth, dtype=torch.float64).clamp_min(0)
    )


class _Elimination:
    """H^-1 and M of some consumers while units are removed, with the changes not added yet.

    P = inverse - rows^T @ steps and M = products - steps^T @ halves - halves^T @ steps, where each
    of the three lists has a row for each removed input. The matrices hold the remaining units, and
    some of those that were removed lately.

    Shapes: C consumers, k inputs of a unit, and r rows of the lists.
    """

    def __init__(
        self,
        inverse: Float[Tensor, "consumers inputs inputs"],
        products: Float[Tensor, "consumers inputs inputs"],
        num_units: int,
        pending: int,
        *,
        unit_inputs: int = 1,
    ) -> None:
        self._inverse, self._products = inverse, products
        self.num_units, self._block = num_units, unit_inputs
        self._pending = max(pending, unit_inputs)
        self._held = torch.arange(num_units)
        """Units that the matrices hold, in their order."""
        self._index = self._held.clone()
        """Of each unit among those that are held."""
        self._is_removed = torch.zeros(num_units, dtype=torch.bool)
        """Of the units that are held."""
        # What each unit alone would cost needs its own entries only: these are kept up to date.
        self._own_inverse = self._own(self._inverse)
        self._own_products = self._own(self._products)
        self._start_lists()

    def _start_lists(self) -> None:
        """Make room for the rows of removed inputs; they are filled from the first on."""
        num_consumers, num_inputs, _ = self._inverse.shape
        most = self._pending + self._block
        self._lists = [self._inverse.new_empty(num_consumers, most, num_inputs) for _ in range(3)]
        self._num_rows = 0

    def _own(
        self, matrices: Float[Tensor, "consumers inputs inputs"]
    ) -> Float[Tensor, "consumers units block block"]:
        inside, shape = self.num_units * self._block, (self.num_units, self._block)
        # Views: a copy of what 97 consumers have would be 0.8 GB.
        tiles = matrices[:, :inside, :inside].unflatten(2, shape).unflatten(1, shape)
        return tiles.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).clone()

    def growth(self, units: Int[Tensor, " some"]) -> Float[Tensor, " some"]:
        """Return what the removal of each of these units would cost, in all consumers together."""
        held = self._index[units]
        inverse, products = self._own_inverse[:, held], self._own_products[:, held]
        if self._block == 1:
            return (products / inverse)[:, :, 0, 0].sum(0)
        return torch.linalg.solve(inverse, products).diagonal(dim1=2, dim2=3).sum((0, 2))

    def remove(self, unit: int) -> None:
        """Remove a unit's inputs and adjust everything else."""
        index = int(self._index[unit])
        inputs = slice(index * self._block, (index + 1) * self._block)
        rows, steps, halves = (rows[:, : self._num_rows] for rows in self._lists)
        row = self._inverse[:, inputs] - rows[:, :, inputs].mT @ steps
        product = (
            self._products[:, inputs]
            - steps[:, :, inputs].mT @ halves
            - halves[:, :, inputs].mT @ steps
        )
        step = torch.linalg.solve(row[:, :, inputs], row)
        # M - step^T product - product^T step + step^T M_SS step, as two terms instead of three.
        half = product - 0.5 * product[:, :, inputs] @ step
        self._update_own(row, step, half)
        for rows, new in zip(self._lists, (row, step, half), strict=True):
            rows[:, self._num_rows : self._num_rows + self._block] = new
        self._num_rows += self._block
        self._is_removed[index] = True
        if self._num_rows >= self._pending:
            self._add_pending()

    def _update_own(
        self,
        row: Float[Tensor, "consumers block inputs"],
        step: Float[Tensor, "consumers block inputs"],
        half: Float[Tensor, "consumers block inputs"],
    ) -> None:
        inside = len(self._held) * self._block
        r, s, h = (
            x[:, :, :inside].unflatten(2, (len(self._held), self._block)) for x in (row, step, half)
        )
        self._own_inverse -= torch.einsum("ckui,ckuj->cuij", r, s)
        change = torch.einsum("ckui,ckuj->cuij", s, h)
        self._own_products -= change + change.mT

    def _add_pending(self) -> None:
        rows, steps, halves = (rows[:, : self._num_rows] for rows in self._lists)
        self._inverse.baddbmm_(rows.mT, steps, alpha=-1)
        self._products.baddbmm_(steps.mT, halves, alpha=-1)
        self._products.baddbmm_(halves.mT, steps, alpha=-1)
        self._num_rows = 0
        if self._is_removed.sum() >= DROPPED_SHARE * len(self._held):
            self._drop_removed()

    def _drop_removed(self) -> None:
        """Take the rows and columns of removed units out of the matrices, where all are 0."""
        stays = ~self._is_removed
        num_others = self._inverse.shape[1] - len(self._held) * self._block
        inputs = torch.cat((stays.repeat_interleave(self._block), stays.new_ones(num_others)))
        index = inputs.nonzero().squeeze(1).to(self._inverse.device)
        self._inverse = _shrink(self._inverse, index)
        self._products = _shrink(self._products, index)
        self._own_inverse = self._own_inverse[:, stays]
        self._own_products = self._own_products[:, stays]
        self._held, self._is_removed = self._held[stays], self._is_removed[stays]
        self._index[self._held] = torch.arange(len(self._held))
        self._start_lists()


def _shrink(
    matrices: Float[Tensor, "consumers inputs inputs"], index: Int[Tensor, " left"]
) -> Float[Tensor, "consumers left left"]:
    """Return the matrices of some inputs, in the same memory.

    Of 97 consumers a copy of all would be 0.8 GB. Each matrix is copied for itself, and then moves
    to the front: what it overwrites has moved before.
    """
    if len(matrices) == 1:
        return matrices[:, index][:, :, index]
    size = len(index)
    entries = matrices.view(-1)
    smaller = entries[: len(matrices) * size * size].view(len(matrices), size, size)
    for number, matrix in enumerate(matrices):
        smaller[number] = matrix[index][:, index]
    return smaller
