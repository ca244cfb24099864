"""A trial config whose leaves may be distributions. Pure: it knows no searcher and no tracker.

`{ uniform | log_uniform | int_uniform = [low, high] }` or `{ choice = [...] }` may stand at any
leaf of the trial table. Both ends, and every choice, are tried on the real configuration before
anything runs.
"""

import difflib
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from core.config.base import ConfigError
from core.config.method_keys import stated_keys, unused_key_line, unused_keys
from core.config.trial import TrialConfig

SHARED = ("corpus", "model", "teacher")
"""Sections that one teacher, and so all trials of a sweep, have in common."""

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
            count = int(self.high) - int(self.low) + 1
            return int(self.low) + min(int(share * count), count - 1)
        low, high = (math.log(self.low), math.log(self.high)) if self.is_log else self.probes()
        value = low * (1 - share) + high * share
        value = math.exp(value) if self.is_log else value
        return min(max(value, self.low), self.high)  # rounding must not leave the range

    def holds(self, value: Any) -> bool:
        return _is_number(value) and self.low <= value <= self.high

    def levels(self, count: int) -> tuple[Scalar, ...]:
        """So many values from end to end, or as many as there are."""
        values = (self.at(i / (count - 1)) for i in range(count))
        return tuple(dict.fromkeys(values))

    def probes(self) -> tuple[float, float]:
        """What must be valid for all between to be: both ends."""
        return (int(self.low), int(self.high)) if self.is_integer else (self.low, self.high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One of a few, in the order written."""

    options: tuple[Scalar, ...]

    def __str__(self) -> str:
        return f"choice [{', '.join(map(str, self.options))}]"

    def at(self, share: float) -> Scalar:
        """The option at a share of the way through the list."""
        return self.options[min(int(share * len(self.options)), len(self.options) - 1)]

    def holds(self, value: Any) -> bool:
        return value in self.options

    def levels(self, count: int) -> tuple[Scalar, ...]:
        """All of them, whatever the count."""
        del count
        return self.options

    def probes(self) -> tuple[Scalar, ...]:
        return self.options


Distribution = Range | Choice


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSpace:
    """What a sweep holds fixed and what it searches."""

    fixed: Mapping[str, Any]
    """The trial table without its distributions."""
    distributions: Mapping[str, Distribution]
    """What is searched, by dotted name under `[trial]`, sorted: the order written means nothing."""

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> "SearchSpace":
        """Read a trial table as TOML gives it.

        Raises:
            ConfigError: with one line for each bad key, rule, value or end of a distribution.
        """
        leaves = list(_leaves(table))
        fixed: dict[str, Any] = {}
        distributions: dict[str, Distribution] = {}
        for name, leaf in leaves:
            if _is_distribution(leaf):
                distributions[name] = _distribution(name, leaf)
            else:
                _put(fixed, name, leaf)
        space = cls(fixed=fixed, distributions=dict(sorted(distributions.items())))
        space._check()
        return space

    @property
    def base(self) -> TrialConfig:
        """The trial at the middle of everything: what the shared teacher is made from."""
        return self.trial_config({})

    @property
    def shared(self) -> TrialConfig:
        """The same, but for latency if any trial goes by it: what all of them need is then made."""
        resource = self.distributions.get("pruning.resource")
        is_timed = resource is not None and resource.holds("latency")
        return self.trial_config({"pruning.resource": "latency"} if is_timed else {})

    @property
    def methods(self) -> tuple[str, ...]:
        """The pruning methods that its trials may use, those by which gates start included."""
        base = self.base.pruning
        names = (
            *self._options("pruning.method", base.method),
            *self._options("pruning.start_from", base.start_from),
        )
        return tuple(dict.fromkeys(name for name in names if name))

    def _options(self, name: str, fixed: str) -> tuple[str, ...]:
        leaf = self.distributions.get(name)
        return tuple(map(str, leaf.options)) if isinstance(leaf, Choice) else (fixed,)

    def unused_keys(self) -> list[str]:
        """Dotted names, given here or not, that no method of its trials reads."""
        return unused_keys(stated_keys(), self.methods)

    def unused_key_lines(self, *, read_elsewhere: Collection[str] = ()) -> list[str]:
        """An error line for each key of the table that no method of its trials reads.

        Args:
            read_elsewhere: keys that the sweep itself reads, whatever the methods.
        """
        given = {**dict(_leaves(self.fixed)), **self.distributions}
        return [
            unused_key_line(name, given[name], self.methods)
            for name in self.unused_keys()
            if name in given and name not in read_elsewhere
        ]

    def middle(self) -> dict[str, Scalar]:
        return {name: leaf.at(0.5) for name, leaf in self.distributions.items()}

    def grid(self, levels: int, *, without: tuple[str, ...] = ()) -> list[dict[str, Scalar]]:
        """All combinations of the choices and of so many values of each range, ends included."""
        leaves = {k: v for k, v in self.distributions.items() if k not in without}
        values = [leaf.levels(levels) for leaf in leaves.values()]
        return [dict(zip(leaves, point, strict=True)) for point in product(*values)]

    def grid_size(self, levels: int, *, without: tuple[str, ...] = ()) -> int:
        leaves = (v for k, v in self.distributions.items() if k not in without)
        return math.prod(len(leaf.levels(levels)) for leaf in leaves)

    def trial_config(self, params: Mapping[str, Any]) -> TrialConfig:
        """One trial: fixed leaves, given ones, and the middle of the ranges not given."""
        values = _copy(self.fixed)
        for name, value in {**self.middle(), **params}.items():
            _put(values, name, value)
        return TrialConfig.parse(values)

    def _check(self) -> None:
        shared = [
            f"`{name}` must be the same for all trials, because they share one teacher,"
            " but is a distribution instead; give each value a sweep of its own"
            for name in self.distributions
            if name.split(".")[0] in SHARED
        ]
        if shared:
            raise ConfigError("\n".join(shared))
        culprits = [
            line
            for name, leaf in self.distributions.items()
            for value in leaf.probes()
            for line in self._culprits({name: value})
        ] or self._culprits({})
        first = {line.split(" ")[0]: line for line in reversed(culprits)}  # one line a culprit
        if culprits:
            raise ConfigError("\n".join(first.values()))

    def _culprits(self, params: Mapping[str, Any]) -> list[str]:
        try:
            self.trial_config(params)
        except ConfigError as error:
            return str(error).splitlines()
        return []


def _is_distribution(leaf: Any) -> bool:
    return isinstance(leaf, Mapping) and any(key in KINDS for key in leaf)


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping) and not _is_distribution(value):
            yield from _leaves(value, f"{prefix}{key}.")
            continue
        near = difflib.get_close_matches(key, KINDS, n=1, cutoff=0.8)
        if near and not _is_distribution(value):
            raise ConfigError(
                f"`{prefix.removesuffix('.')}` must be a value or one of {_among(KINDS)},"
                f" but is `{key}` instead; did you mean `{near[0]}`?"
            )
        yield f"{prefix}{key}", value


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    *sections, key = name.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[key] = value


def without_leaves(table: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The nested table without the leaves of these dotted names."""
    kept: dict[str, Any] = {}
    for name, leaf in _leaves(table):
        if name not in names:
            _put(kept, name, leaf)
    return kept


def overlaid(table: Mapping[str, Any], leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The nested table with other values at some dotted names; sections not named are shared."""
    found = dict(table)
    for name, value in leaves.items():
        *sections, key = name.split(".")
        inner = found
        for section in sections:
            inner[section] = dict(inner.get(section, {}))
            inner = inner[section]
        inner[key] = value
    return found


def _copy(table: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in table.items()}


def _distribution(name: str, leaf: Mapping[str, Any]) -> Distribution:
    if len(leaf) > 1:
        keys = ", ".join(f"`{key}`" for key in leaf)
        raise ConfigError(f"`{name}` must be one of {_among(KINDS)}, but has {keys} instead")
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
    if len({(type(o), o) for o in options}) < len(options):
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
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _among(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)
