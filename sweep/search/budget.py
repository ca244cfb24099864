"""When a sweep asks for no new trial: it has enough, its hours are spent, or the front has settled.

Trials that have begun are ended all the same. Pure.
"""

from collections.abc import Sequence
from typing import Any

from sweep.config.sweep import MOST_TRIALS, BudgetConfig, SweepConfig
from sweep.ledger.records import TrialRecord
from sweep.pareto import front


def reached_limit(records: Sequence[TrialRecord], config: SweepConfig) -> str | None:
    """The limit that is reached, in words; None if there shall be another trial."""
    budget = config.sweep
    if len(records) >= config.num_trials:
        return f"all {config.num_trials} trials"
    hours = spent_hours(records)
    if budget.hours is not None and hours >= budget.hours:
        return f"{hours:.2f} of {budget.hours:g} hours spent"
    if _has_settled(records, budget):
        return f"the last {budget.plateau_trials} trials added too little to the front"
    return None


def extended_budget(
    records: Sequence[TrialRecord],
    config: SweepConfig,
    *,
    trials: int | None,
    hours: float | None,
) -> dict[str, Any]:
    """The values of a larger budget: so much more than was asked for, or than there is already.

    Of limits not named, those that are reached give way, or nothing would be added.

    Args:
        records: all trials of the sweep.
        config: the sweep's, with the old budget.
        trials: to be added; None adds none.
        hours: to be added; None adds none.
    """
    budget = config.sweep
    is_over = reached_limit(records, config) is not None
    values: dict[str, Any] = {}
    if trials is not None:
        # `extend --trials 5`: with 20 planned and 12 done, 25; with 20 planned but ended by its
        # hours at 12, 17. Five more are then run either way.
        values["trials"] = (len(records) if is_over else budget.trials) + trials
    elif len(records) >= budget.trials:
        values["trials"] = MOST_TRIALS
    spent = spent_hours(records)
    if hours is not None:
        values["hours"] = (spent if is_over else budget.hours or spent) + hours
    elif budget.hours is not None and spent >= budget.hours:
        values["hours"] = None
    if _has_settled(records, budget):
        values["plateau_trials"] = 0
    return values


def spent_hours(records: Sequence[TrialRecord]) -> float:
    return sum(record.seconds for record in records) / 3600


def _has_settled(records: Sequence[TrialRecord], budget: BudgetConfig) -> bool:
    """Whether the hypervolume hardly grew over the last trials, by number, of those that ended."""
    over = [record for record in records if record.is_over]
    if not budget.plateau_trials or len(over) <= budget.plateau_trials:
        return False
    # Of all points, or a share would change its meaning with them.
    whole, earlier = front.points(over), front.points(over[: -budget.plateau_trials])
    if not earlier:
        return False
    # One corner for both areas: each one's own could differ, and the growth would be of the corner.
    corner = front.unpruned_gflops(whole)
    now, before = (
        front.hypervolume(points, worst_wer=1.0, worst_gflops=corner) for points in (whole, earlier)
    )
    # 0.500 before and 0.503 after the last trials: with plateau_gain = 0.01 the growth of 0.003 is
    # less than 0.00503, so the front has settled.
    return now - before < budget.plateau_gain * now
