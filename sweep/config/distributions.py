"""Distributions that may stand at a leaf of the trial table. Pure.

They are written `{ uniform | log_uniform | int_uniform = [low, high] }` or `{ choice = [...] }`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.config.base import ConfigError

RANGES = ("uniform", "log_uniform", "int_uniform")
KINDS = (*RANGES, "choice")

Scalar = str | int | float | bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    is_log: bool = False
    is_integer: bool = False

    def __str__(self) -> str:
        kind = "int_uniform" if self.is_integer else "log_uniform" if self.is_log else "uniform"
        return f"{kind} [{self.low:g}, {self.high:g}]"

    def at(self, share: float) -> Scalar:
        """The value at a share of the way from low to high, on the range's own scale."""
        if self.is_integer:
            # int_uniform [1, 4] has 4 values, each of a quarter of the shares: 0.24 gives 1, 0.25
            # gives 2, and 1.0, which would be a fifth value, gives 4.
            count = int(self.high) - int(self.low) + 1
            return int(self.low) + min(int(share * count), count - 1)
        # log_uniform [1e-4, 1e-2] at 0.5 is 1e-3, the middle of the exponents; uniform would give
        # 5.05e-3.
        low, high = (math.log(self.low), math.log(self.high)) if self.is_log else self.probes()
        # Of both ends rather than low + share * (high - low), which at 1.0 can miss `high` by a
        # last bit.
        value = low * (1 - share) + high * share
        value = math.exp(value) if self.is_log else value
        return min(max(value, self.low), self.high)  # rounding must not leave the range

    def holds(self, value: Any) -> bool:
        # A number that would need rounding still lies in an integer range: the trial's own
        # configuration refuses it.
        return _is_number(value) and self.low <= value <= self.high

    def levels(self, count: int) -> tuple[Scalar, ...]:
        """Returns a number of values from end to end; fewer where an integer range has fewer."""
        # int_uniform [1, 3] at 5 levels: shares 0, 0.25, 0.5, 0.75, 1 give 1, 1, 2, 3, 3, so 1, 2,
        # 3.
        values = (self.at(i / (count - 1)) for i in range(count))
        return tuple(dict.fromkeys(values))

    def probes(self) -> tuple[float, float]:
        """Returns both ends: where they are valid, so is all between."""
        return (int(self.low), int(self.high)) if self.is_integer else (self.low, self.high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One of several values, in the order written."""

    options: tuple[Scalar, ...]

    def __str__(self) -> str:
        return f"choice [{', '.join(map(str, self.options))}]"

    def at(self, share: float) -> Scalar:
        """The option at a share of the way through the list."""
        return self.options[min(int(share * len(self.options)), len(self.options) - 1)]

    def holds(self, value: Any) -> bool:
        return value in self.options

    def levels(self, count: int) -> tuple[Scalar, ...]:
        """Returns all options, whatever the count."""
        del count
        return self.options

    def probes(self) -> tuple[Scalar, ...]:
        return self.options


Distribution = Range | Choice


def is_distribution(leaf: Any) -> bool:
    return isinstance(leaf, Mapping) and any(key in KINDS for key in leaf)


def read_distribution(name: str, leaf: Mapping[str, Any]) -> Distribution:
    """Returns the distribution that a leaf's table writes, such as `{ uniform = [0.2, 0.8] }`.

    Raises:
        ConfigError: if it has another form; the message begins with the leaf's name.
    """
    if len(leaf) > 1:
        keys = ", ".join(f"`{key}`" for key in leaf)
        raise ConfigError(f"`{name}` must be one of {list_names(KINDS)}, but has {keys} instead")
    kind, values = next(iter(leaf.items()))
    return _choice(name, values) if kind == "choice" else _range(name, kind, values)


def _choice(name: str, options: Any) -> Choice:
    if not isinstance(options, list) or not options:
        raise ConfigError(
            f"`{name}` must be a choice of one or more values in brackets,"
            f" but is {options!r} instead"
        )
    for option in options:
        if not isinstance(option, (str, int, float, bool)):
            raise ConfigError(
                f"`{name}` must be a choice of numbers, texts or true and false,"
                f" but one is {option!r} instead"
            )
    # `1`, `1.0` and `true` are equal, too: a ledger finds an option by comparing, and would give
    # the first for all three.
    if len(set(options)) < len(options):
        raise ConfigError(
            f"`{name}` must be a choice of different values, but is {options!r} instead"
        )
    return Choice(options=tuple(options))


def _range(name: str, kind: str, ends: Any) -> Range:
    rule = f"`{name}` must be {kind} of two numbers, the lower first,"
    if not (isinstance(ends, list) and len(ends) == 2 and all(_is_number(e) for e in ends)):
        raise ConfigError(f"{rule} but is {ends!r} instead")
    low, high = ends
    if not low < high:
        raise ConfigError(f"{rule} but is {ends!r} instead; for one value, write it alone")
    if kind == "int_uniform" and not (isinstance(low, int) and isinstance(high, int)):
        raise ConfigError(f"`{name}` must be int_uniform of whole numbers, but is {ends!r} instead")
    if kind == "log_uniform" and low <= 0:
        raise ConfigError(
            f"`{name}` must be log_uniform of numbers above 0, but starts at {low} instead"
        )
    if kind == "int_uniform":
        return Range(low=low, high=high, is_integer=True)
    return Range(low=float(low), high=float(high), is_log=kind == "log_uniform")


def _is_number(value: Any) -> bool:
    # `true` is an int in Python.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def list_names(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)
