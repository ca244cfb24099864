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

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

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
        products: M = W^T F W, likewise.
        num_units: units; unit u has the inputs u * unit_inputs and following.
        unit_inputs: inputs of one unit. Inputs beyond those of all units always stay.
        damping: share of the mean of H's diagonal that is added to it.
        pending: rows of changes that are collected; the result does not depend on it.
    """
    inverse = damped_inverse(gram, damping)
    elimination = _Elimination(inverse, products.clone(), num_units, unit_inputs, pending)
    return _removal_order([elimination])


def joint_removal_order(
    readers: Iterable[tuple[Float[Tensor, "inputs inputs"], Float[Tensor, "inputs inputs"]]],
    *,
    num_units: int,
    damping: float = DAMPING,
) -> RemovalOrder:
    """Return the order of units that several consumers read, each unit one input of every consumer.

    A unit is removed from all consumers at once, and each is refitted for itself. The growth is the
    sum over the consumers.

    Args:
        readers: H and M of each consumer, in double precision; M is changed. A hundred of them may
            not fit into memory twice, so an iterator may let go of each.
        num_units: units.
        damping: share of the mean of each H's diagonal that is added to it.
    """
    return _removal_order(
        [
            _Elimination(damped_inverse(gram, damping), products, num_units, 1, PENDING)
            for gram, products in readers
        ]
    )


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


def _removal_order(eliminations: "Sequence[_Elimination]") -> RemovalOrder:
    num_units = eliminations[0].num_units
    remaining = torch.ones(num_units, dtype=torch.bool)
    units, growth = [], []
    for _ in range(num_units):
        index = remaining.nonzero().squeeze(1)
        costs = sum(elimination.growth(index) for elimination in eliminations)
        assert isinstance(costs, Tensor)
        best = int(costs.argmin())
        unit = int(index[best])
        units.append(unit)
        growth.append(float(costs[best]))
        remaining[unit] = False
        for elimination in eliminations:
            elimination.remove(unit)
    return RemovalOrder(
        units=torch.tensor(units), growth=torch.tensor(growth, dtype=torch.float64).clamp_min(0)
    )


class _Elimination:
    """H^-1 and M while units are removed, with the changes that are not added yet.

    P = inverse - rows^T @ steps and M = products - steps^T @ halves - halves^T @ steps, where each
    of the three lists has a row for each removed input. The matrices hold the remaining units, and
    some of those that were removed lately.
    """

    def __init__(
        self,
        inverse: Float[Tensor, "inputs inputs"],
        products: Float[Tensor, "inputs inputs"],
        num_units: int,
        unit_inputs: int,
        pending: int,
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
        most = self._pending + self._block
        self._lists = [self._inverse.new_empty(most, len(self._inverse)) for _ in range(3)]
        self._num_rows = 0

    def _own(self, matrix: Float[Tensor, "inputs inputs"]) -> Float[Tensor, "units block block"]:
        inside, block = self.num_units * self._block, self._block
        tiles = matrix[:inside, :inside].view(self.num_units, block, self.num_units, block)
        return tiles.diagonal(dim1=0, dim2=2).permute(2, 0, 1).clone()

    def growth(self, units: Int[Tensor, " some"]) -> Float[Tensor, " some"]:
        """Return what the removal of each of these units would cost."""
        held = self._index[units]
        inverse, products = self._own_inverse[held], self._own_products[held]
        if self._block == 1:
            return (products / inverse)[:, 0, 0]
        return torch.linalg.solve(inverse, products).diagonal(dim1=1, dim2=2).sum(1)

    def remove(self, unit: int) -> None:
        """Remove a unit's inputs and adjust everything else."""
        index = int(self._index[unit])
        inputs = slice(index * self._block, (index + 1) * self._block)
        rows, steps, halves = (rows[: self._num_rows] for rows in self._lists)
        row = self._inverse[inputs] - rows[:, inputs].T @ steps
        product = self._products[inputs] - steps[:, inputs].T @ halves - halves[:, inputs].T @ steps
        step = torch.linalg.solve(row[:, inputs], row)
        # M - step^T product - product^T step + step^T M_SS step, as two terms instead of three.
        half = product - 0.5 * product[:, inputs] @ step
        self._update_own(row, step, half)
        for rows, new in zip(self._lists, (row, step, half), strict=True):
            rows[self._num_rows : self._num_rows + self._block] = new
        self._num_rows += self._block
        self._is_removed[index] = True
        if self._num_rows >= self._pending:
            self._add_pending()

    def _update_own(
        self,
        row: Float[Tensor, "block inputs"],
        step: Float[Tensor, "block inputs"],
        half: Float[Tensor, "block inputs"],
    ) -> None:
        inside = len(self._held) * self._block
        r, s, h = (
            x[:, :inside].unflatten(1, (len(self._held), self._block)) for x in (row, step, half)
        )
        self._own_inverse -= torch.einsum("kui,kuj->uij", r, s)
        change = torch.einsum("kui,kuj->uij", s, h)
        self._own_products -= change + change.mT

    def _add_pending(self) -> None:
        rows, steps, halves = (rows[: self._num_rows] for rows in self._lists)
        self._inverse.addmm_(rows.T, steps, alpha=-1)
        self._products.addmm_(steps.T, halves, alpha=-1)
        self._products.addmm_(halves.T, steps, alpha=-1)
        self._num_rows = 0
        if self._is_removed.sum() >= DROPPED_SHARE * len(self._held):
            self._drop_removed()

    def _drop_removed(self) -> None:
        """Take the rows and columns of removed units out of the matrices, where all are 0."""
        stays = ~self._is_removed
        num_others = len(self._inverse) - len(self._held) * self._block
        inputs = torch.cat((stays.repeat_interleave(self._block), stays.new_ones(num_others)))
        index = inputs.nonzero().squeeze(1).to(self._inverse.device)
        self._inverse = self._inverse[index][:, index]
        self._products = self._products[index][:, index]
        self._own_inverse, self._own_products = self._own_inverse[stays], self._own_products[stays]
        self._held, self._is_removed = self._held[stays], self._is_removed[stays]
        self._index[self._held] = torch.arange(len(self._held))
        self._start_lists()
