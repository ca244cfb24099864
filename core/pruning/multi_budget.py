"""An order tilted so that several budgets bind at once.

An order by worth meets one budget; whatever else it spends is as it comes. So the worth of each
step is tilted by its mix of resources,

    worth + sum over further resources k of mu_k * mix_k,

until cutting the order where the first budget binds spends just what the others allow. These are
the Lagrange multipliers of the knapsack with several constraints, whose dual is convex, so each mu
is found by bisection, the later ones anew for each of an earlier one. Worth is a step's rank, as an
order is all that scores promise.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

# Bisections of the last tilt, which is then known to less than what a step moves, and of those
# before it, each of which costs all of the last one's.
HALVINGS, OUTER_HALVINGS = 12, 7
# So many orders are tried to the end: what filling adds depends on where each was cut.
NEAREST = 6
# At the ends of the scale worth plays hardly any part.
MAX_TILT = 0.999

Exceeded = Callable[[Sequence[int]], Sequence[float]]
"""By how much, as shares, an order cut where the first budget binds exceeds each of the others."""


def orders_meeting_budgets(
    mixes: Float[np.ndarray, "resources steps"], exceeded: Exceeded, *, fixed: int
) -> Iterator[list[int]]:
    """Orders, as numbers of steps, by which all budgets bind as nearly as any.

    Args:
        mixes: how much of what a step costs is of each further resource.
        exceeded: what an order leads to.
        fixed: so many of the first steps keep their places.
    """
    spread = np.ptp(mixes, axis=1, keepdims=True)
    slopes = (mixes - mixes.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1.0)
    seen: dict[tuple[float, ...], float] = {}
    _settle((), slopes, exceeded, fixed, seen)
    for tilts in sorted(seen, key=lambda each: seen[each])[:NEAREST]:
        yield reweighted_order(slopes, tilts, fixed=fixed)


def reweighted_order(
    slopes: Float[np.ndarray, "resources steps"], tilts: Sequence[float], *, fixed: int
) -> list[int]:
    """The order when what is rich in a resource loses by its tilt, from -1 to 1."""
    worth = np.linspace(1, 0, slopes.shape[1])
    mu = np.array([tilt / (1 - abs(tilt)) for tilt in tilts])
    values = (worth - mu @ slopes)[fixed:]
    numbers: list[int] = (fixed + np.argsort(-values, kind="stable")).tolist()
    return [*range(fixed), *numbers]


def _settle(
    known: tuple[float, ...],
    slopes: Float[np.ndarray, "resources steps"],
    exceeded: Exceeded,
    fixed: int,
    seen: dict[tuple[float, ...], float],
) -> Sequence[float]:
    """What is exceeded at the best tilts of the rest, when the first are known.

    Of all tilts that were tried it is noted how far they are from the goal.
    """
    place = len(known)
    if place == len(slopes):
        left = exceeded(reweighted_order(slopes, known, fixed=fixed))
        seen[known] = max(abs(each) for each in left)
        return left
    low, high = -MAX_TILT, MAX_TILT
    found: Sequence[float] = ()
    is_last = place == len(slopes) - 1
    for _ in range(HALVINGS if is_last else OUTER_HALVINGS):
        middle = (low + high) / 2
        found = _settle((*known, middle), slopes, exceeded, fixed, seen)
        low, high = (middle, high) if found[place] > 0 else (low, middle)
    return found
