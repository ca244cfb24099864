"""What differs between the config a sweep was begun with and the one it shall go on with.

More trials, other resources, wider ranges: what is done stays comparable, and the sweep goes on.
All else would put trials of two kinds on one front, and is refused by name. Pure.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from core.config.base import ConfigError
from sweep.config.distributions import Choice, Distribution, Range
from sweep.config.sweep import SweepConfig

FREE = ("sweep.", "search.", "early_stopping.", "resources.", "tracking.", "trial.runtime.")
"""What decides how much is tried, where and in which order, but not what a trial finds."""
BOUND = ("sweep.objectives",)
ABSENT = "nothing"


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A leaf of the config that is not as it was."""

    name: str
    before: str
    after: str
    is_allowed: bool

    def __str__(self) -> str:
        return f"{self.name}: {self.before} -> {self.after}"


def changes(before: SweepConfig, after: SweepConfig) -> list[Change]:
    """All leaves that differ, by name."""
    old, new = dict(leaves(before)), dict(leaves(after))
    return [
        Change(
            name=name,
            before=_describe(old.get(name)),
            after=_describe(new.get(name)),
            is_allowed=_is_allowed(name, old.get(name), new.get(name)),
        )
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def check(differences: list[Change]) -> None:
    """Refuse what cannot go on in one sweep.

    Raises:
        ConfigError: one line a culprit.
    """
    culprits = [change for change in differences if not change.is_allowed]
    if culprits:
        raise ConfigError(
            "\n".join(
                f"`{c.name}` must stay what it was in this sweep, {c.before}, but is {c.after}"
                " instead; start another sweep with it"
                for c in culprits
            )
        )


def leaves(config: SweepConfig) -> Iterator[tuple[str, Any]]:
    """All of a config by dotted name; what is searched is its distribution."""
    table = config.model_dump(exclude={"trial"})
    yield from _flat(table, "")
    searched = config.space.distributions
    for name, value in _flat(config.space.with_defaults(), ""):
        # A searched leaf appears as its distribution: `pruning.target_sparsity` has some value in
        # the table, but what must not become narrower is its range.
        yield f"trial.{name}", searched.get(name, value)


def _flat(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_allowed(name: str, before: Any, after: Any) -> bool:
    if name in BOUND:
        return False
    # `sweep.objectives` begins with a free prefix, thus the check above comes first.
    return name.startswith(FREE) or _is_wider(before, after)


def _is_wider(before: Any, after: Any) -> bool:
    """Whether all that could be drawn can still be drawn, on the same scale."""
    if isinstance(before, Range) and isinstance(after, Range):
        # uniform [0.3, 0.7] -> [0.2, 0.8] is wider. uniform [1e-4, 1e-2] -> log_uniform of the same
        # ends is not: it draws the same values, but a model would see the old points on another
        # scale.
        is_same_scale = (before.is_log, before.is_integer) == (after.is_log, after.is_integer)
        return is_same_scale and after.low <= before.low and before.high <= after.high
    if isinstance(before, Choice) and isinstance(after, Choice):
        return set(before.options) <= set(after.options)
    return False


def _describe(value: Distribution | Any) -> str:
    return ABSENT if value is None else str(value)
