"""Orders of units that meet several budgets at once.

An order by score meets one budget; its use of other resources is whatever results. So the worth of
each step is reweighted by its mix of resources,

    worth - sum over further resources k of mu_k * mix_k,

until the prefix that meets the first budget uses just what the others allow. The mu are the
Lagrange multipliers of the knapsack with several constraints, whose dual is convex, so each mu is
found by bisection, and each later one again for every value of an earlier one. A step's worth is
its rank, as scores define an order and nothing more.

Example: steps A, B and C in that order, with mixes 0.9, 0.1 and 0.1 of the second resource. Without
a tilt the order is A, B, C. If its prefix uses too much of the second resource, a positive tilt
lowers A, the step that is rich in it: B, A, C, then B, C, A.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

# Bisections of the last tilt, whose error is then smaller than what moves a step, and of each
# earlier one, every one of which repeats all bisections of the last.
HALVINGS, OUTER_HALVINGS = 12, 7
# Orders to complete: what filling adds depends on where an order is cut.
NEAREST = 6
# At a tilt of 1 the mix alone decides.
MAX_TILT = 0.999

ExcessOf = Callable[[Sequence[int]], Sequence[float]]
"""Excess of each further budget, as a share, when an order is cut where the first one binds."""


def orders_meeting_budgets(
    mixes: Float[np.ndarray, "resources steps"], excess_of: ExcessOf, *, fixed: int
) -> Iterator[list[int]]:
    """Yield orders, as numbers of steps, that meet all budgets as tightly as possible, best first.

    Args:
        mixes: of each further resource, its share in the cost of each step.
        excess_of: the excess of each further budget under an order.
        fixed: how many of the first steps are not reordered.
    """
    # A range of 1 makes tilts of different resources comparable; equal mixes stay 0, and no tilt
    # moves them.
    spread = np.ptp(mixes, axis=1, keepdims=True)
    slopes = (mixes - mixes.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1.0)
    seen: dict[tuple[float, ...], float] = {}
    _bisect_multipliers((), slopes, excess_of, fixed, seen)
    for tilts in sorted(seen, key=seen.__getitem__)[:NEAREST]:
        yield reweighted_order(slopes, tilts, fixed=fixed)


def reweighted_order(
    slopes: Float[np.ndarray, "resources steps"], tilts: Sequence[float], *, fixed: int
) -> list[int]:
    """Return the order in which steps rich in a resource are lowered by its tilt, from -1 to 1.

    A tilt t is the multiplier mu = t / (1 - |t|), which makes (-1, 1) cover all real numbers.
    """
    worth = np.linspace(1, 0, slopes.shape[1])
    # The module's example: with a tilt above 1/3, A comes after B; above 1/2, after C, too.
    mu = np.array([tilt / (1 - abs(tilt)) for tilt in tilts])
    values = (worth - mu @ slopes)[fixed:]
    numbers: list[int] = (fixed + np.argsort(-values, kind="stable")).tolist()
    return [*range(fixed), *numbers]


def _bisect_multipliers(
    tilts: tuple[float, ...],
    slopes: Float[np.ndarray, "resources steps"],
    excess_of: ExcessOf,
    fixed: int,
    seen: dict[tuple[float, ...], float],
) -> Sequence[float]:
    """Find the best tilts of the later resources for given tilts of the first; return the excess.

    With two further resources, `tilts` = () bisects the first tilt; for each of its values t,
    `tilts` = (t,) bisects the second one; (t, u) evaluates the order.

    Args:
        tilts: of the first resources.
        slopes: mixes of each resource, centered and of range 1.
        excess_of: the excess of each further budget under an order.
        fixed: how many of the first steps are not reordered.
        seen: records the largest excess or slack of all tilts that are tried.
    """
    index = len(tilts)
    if index == len(slopes):
        reached = excess_of(reweighted_order(slopes, tilts, fixed=fixed))
        seen[tilts] = max(abs(value) for value in reached)
        return reached
    low, high = -MAX_TILT, MAX_TILT
    excess: Sequence[float] = ()
    is_last = index == len(slopes) - 1
    # One further resource takes 12 evaluations of an order, two take 7 * 12 = 84.
    for _ in range(HALVINGS if is_last else OUTER_HALVINGS):
        middle = (low + high) / 2
        excess = _bisect_multipliers((*tilts, middle), slopes, excess_of, fixed, seen)
        # More tilt, less of this resource: the tilt at which it is just used up stays within low
        # and high.
        low, high = (middle, high) if excess[index] > 0 else (low, middle)
    return excess
