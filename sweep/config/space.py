"""A trial config whose leaves may be distributions. Pure: it knows no searcher and no tracker.

`{ uniform | log_uniform | int_uniform = [low, high] }` or `{ choice = [...] }` may stand at any
leaf of the trial table. Both ends, and every choice, are tried on the real configuration before
anything runs.

The space is conditional where the pruning method is a choice: the leaves of `[trial.pruning.l0]`
belong to trials of `l0` alone (and to those whose gates start from its scores). Example: with
`method = { choice = ["l0", "acip"] }`, `[trial.pruning.l0] lambda_lr` and `[trial.pruning.acip]
smallest` searched, a trial of `l0` has the parameters `pruning.method` and `pruning.l0.lambda_lr`.
"""

import difflib
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from core.config.base import ConfigError
from core.config.methods import (
    method_names,
    owner_of,
    restricted_keys,
    unused_key_line,
    unused_keys,
)
from core.config.pruning import PruningConfig, misplaced_key_lines, without_other_methods
from core.config.trial import TrialConfig
from sweep.config.distributions import (
    KINDS,
    Choice,
    Distribution,
    Scalar,
    is_distribution,
    list_names,
    read_distribution,
)

METHOD = "pruning.method"
SHARED = ("corpus", "model", "teacher", "loss")
"""Sections that one teacher, and so all trials of a sweep, have in common."""


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """The fixed leaves and the distributions of a sweep's trial table."""

    fixed: Mapping[str, Any]
    """The trial table without its distributions."""
    distributions: Mapping[str, Distribution]
    """Distributions by dotted name under `[trial]`, sorted: the order written means nothing."""

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
            if is_distribution(leaf):
                distributions[name] = read_distribution(name, leaf)
            else:
                _put(fixed, name, leaf)
        # Sorted, because quasi-random points are dealt out by position: swapping two lines of the
        # file must not change the trials.
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
        """The pruning methods that trials may use, including those by which gates start."""
        methods = self._options(METHOD, PruningConfig.model_fields["method"].default)
        # `start_from` may be a choice whose first option is "": gates that start from nothing.
        starts = [start for name in methods for start in self._options(_start_key(name), "")]
        return tuple(dict.fromkeys(name for name in (*methods, *starts) if name))

    def _options(self, name: str, default: str) -> tuple[str, ...]:
        leaf = self.distributions.get(name, _get(self.fixed, name, default))
        return tuple(map(str, leaf.options)) if isinstance(leaf, Choice) else (str(leaf),)

    def methods_of(self, params: Mapping[str, Any]) -> tuple[str, ...]:
        """Returns the methods that a trial of these parameters uses.

        They are its own and, if gates start from another's scores, that one.
        """

        def value(name: str, default: str) -> str:
            leaf = self.distributions.get(name)
            fixed = _get(self.fixed, name, default) if leaf is None else leaf.at(0.5)
            return str(params.get(name, fixed))

        method = value(METHOD, PruningConfig.model_fields["method"].default)
        start = value(_start_key(method), "")
        return (method, start) if start else (method,)

    def active_leaves(self, params: Mapping[str, Any]) -> dict[str, Distribution]:
        """Returns the distributions that a trial of these parameters has: not other methods'."""
        used = (None, *self.methods_of(params))
        return {name: leaf for name, leaf in self.distributions.items() if owner_of(name) in used}

    @cached_property
    def is_conditional(self) -> bool:
        """Whether some leaves belong to some trials alone."""
        # With a fixed method its leaves belong to all trials, so that one model of all can be used.
        return any(owner_of(name) for name in self.distributions) and len(self.methods) > len(
            self.methods_of({})
        )

    def params_with(self, method: str) -> dict[str, Scalar]:
        """Returns parameters under which a trial uses one of `methods`; empty if all trials do."""
        if method in self.methods_of({}):
            return {}
        if method in self._options(METHOD, ""):
            return {METHOD: method}
        users = self._options(METHOD, self.methods_of({})[0])
        # `magnitude` may only give the scores from which gates of l0 start. A trial that uses it is
        # {"pruning.method": "l0", "pruning.l0.start_from": "magnitude"}.
        user = next(name for name in users if method in self._options(_start_key(name), ""))
        params = {METHOD: user, _start_key(user): method}
        return {name: value for name, value in params.items() if name in self.distributions}

    def with_defaults(self) -> dict[str, Any]:
        """Returns the trial's table with every default of every method that trials may use.

        Searched leaves have some value of theirs.
        """
        table = self.base.model_dump()
        for config in self.config_of_each_method():
            values = config.pruning.model_dump()
            table["pruning"] |= {name: values[name] for name in self.methods if name in values}
        return table

    def config_of_each_method(self) -> list[TrialConfig]:
        """Returns, for each of `methods`, the trial at the middle of everything that uses it."""
        return [self.trial_config(self.params_with(method)) for method in self.methods]

    def unused_keys(self) -> list[str]:
        """Returns the dotted names, in the table or not, that no method of its trials reads."""
        return unused_keys(restricted_keys(), self.methods)

    def unused_key_lines(self) -> list[str]:
        """Returns an error line for each key of the table that no method of its trials reads."""
        leaves = {**dict(_leaves(self.fixed)), **self.distributions}
        return [
            unused_key_line(name, leaves[name], self.methods)
            for name in self.unused_keys()
            if name in leaves
        ]

    def middle(self, params: Mapping[str, Any] | None = None) -> dict[str, Scalar]:
        """Returns the middle of each leaf of a trial of these parameters."""
        return {name: leaf.at(0.5) for name, leaf in self.active_leaves(params or {}).items()}

    def grid(self, levels: int, *, without: tuple[str, ...] = ()) -> list[dict[str, Scalar]]:
        """Returns all combinations of the choices and of a number of values of each range.

        Of a conditional space, each trial has the leaves of its own method alone.
        """
        shared = self._unconditional_leaves(without)
        points = list(_combinations(shared, levels))
        # Twice, because the leaves of a method may choose one from whose scores its gates start.
        for _ in range(2 * self.is_conditional):
            points = [
                {**point, **own}
                for point in points
                for own in _combinations(self._leaves_missing(point, without), levels)
            ]
        return points

    def grid_size(self, levels: int, *, without: tuple[str, ...] = ()) -> int:
        """Returns the length of `grid`, which may be too long to be made."""
        shared = self._unconditional_leaves(without)
        if not self.is_conditional:
            return _num_combinations(shared, levels)
        # Leaves that decide on no others only multiply: 5 levels of the target, and methods with 25
        # and 5 combinations of their own, are 5 * (25 + 5) = 150 points, of which none needs to be
        # made.
        selectors = {name: leaf for name, leaf in shared.items() if _is_selector(name)}
        others = {name: leaf for name, leaf in shared.items() if name not in selectors}
        sizes = (self._grid_size_of(point, levels, without) for point in _combinations(selectors))
        return _num_combinations(others, levels) * sum(sizes)

    def _grid_size_of(
        self, point: Mapping[str, Scalar], levels: int, without: tuple[str, ...]
    ) -> int:
        """Returns the number of combinations of the methods' own leaves in trials of a point."""
        own = self._leaves_missing(point, (*without, *self._unconditional_leaves(without)))
        selectors = {name: leaf for name, leaf in own.items() if _is_selector(name)}
        others = {name: leaf for name, leaf in own.items() if name not in selectors}
        if not selectors:
            return _num_combinations(others, levels)
        return sum(
            self._grid_size_of({**point, **choice}, levels, without)
            for choice in _combinations(selectors)
        )

    def _unconditional_leaves(self, without: Collection[str]) -> dict[str, Distribution]:
        """Returns the leaves that all trials have."""
        has_all = not self.is_conditional
        return {
            name: leaf
            for name, leaf in self.distributions.items()
            if name not in without and (has_all or owner_of(name) is None)
        }

    def _leaves_missing(
        self, point: Mapping[str, Scalar], without: Collection[str]
    ) -> dict[str, Distribution]:
        """Returns the leaves that a trial of this point has, and the point has not."""
        active = self.active_leaves(point)
        return {n: leaf for n, leaf in active.items() if n not in point and n not in without}

    def trial_config(self, params: Mapping[str, Any]) -> TrialConfig:
        """Returns one trial: fixed leaves, these parameters, and the middle of all other ranges.

        Tables of methods that the trial does not use are left out.
        """
        values = _copy(self.fixed)
        # `middle` looks at the parameters first: it has the leaves of the method that they choose.
        for name, value in {**self.middle(params), **params}.items():
            _put(values, name, value)
        pruning = values.get("pruning")
        if isinstance(pruning, dict):
            values["pruning"] = without_other_methods(pruning)
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
        self._check_places()
        culprits = [
            line
            for name, leaf in self.distributions.items()
            for value in leaf.probes()
            for line in self._culprits({**self._activating(name), name: value})
        ] or self._culprits({})
        # A rule that both ends break is one line: reversed, the first line of a name stays.
        first = {line.split(" ")[0]: line for line in reversed(culprits)}  # one line a culprit
        if culprits:
            raise ConfigError("\n".join(first.values()))

    def _check_places(self) -> None:
        """Refuses settings outside of their method's table, and tables of methods not in use.

        Raises:
            ConfigError: one line a key.
        """
        leaves = {**dict(_leaves(self.fixed)), **self.distributions}
        names = [name.removeprefix("pruning.") for name in leaves if name.startswith("pruning.")]
        lines = [
            *misplaced_key_lines(dict.fromkeys(names), self.methods),
            *(
                unused_key_line(name, leaves[name], self.methods)
                for name in leaves
                if owner_of(name) not in (None, *self.methods)
            ),
        ]
        # With an unknown method every table would be one of a method not in use: then the
        # configuration itself says which name is wrong.
        if lines and set(self.methods) <= set(method_names()):
            raise ConfigError("\n".join(lines))

    def _activating(self, name: str) -> dict[str, Scalar]:
        """Returns parameters under which a trial has a leaf; empty if all trials do."""
        owner = owner_of(name)
        return self.params_with(owner) if owner in self.methods else {}

    def _culprits(self, params: Mapping[str, Any]) -> list[str]:
        try:
            self.trial_config(params)
        except ConfigError as error:
            return str(error).splitlines()
        return []


def _start_key(method: str) -> str:
    return f"pruning.{method}.start_from"


def _is_selector(name: str) -> bool:
    """Whether a leaf decides which methods a trial uses."""
    return name == METHOD or (owner_of(name) is not None and name.endswith(".start_from"))


def _combinations(
    leaves: Mapping[str, Distribution], levels: int = 2
) -> Iterator[dict[str, Scalar]]:
    """Yields all combinations of the leaves' levels; one empty combination of no leaves."""
    values = [leaf.levels(levels) for leaf in leaves.values()]
    return (dict(zip(leaves, point, strict=True)) for point in product(*values))


def _num_combinations(leaves: Mapping[str, Distribution], levels: int) -> int:
    return math.prod(len(leaf.levels(levels)) for leaf in leaves.values())


def _get(table: Mapping[str, Any], name: str, default: Any) -> Any:
    """Returns the leaf of a dotted name in a nested table, or the default if there is none."""
    value: Any = table
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return value


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping) and not is_distribution(value):
            yield from _leaves(value, f"{prefix}{key}.")
            continue
        # `{ unifrom = [0.2, 0.8] }` is a table without a known kind, so its key arrives here as a
        # leaf.
        near = difflib.get_close_matches(key, KINDS, n=1, cutoff=0.8)
        if near and not is_distribution(value):
            raise ConfigError(
                f"`{prefix.removesuffix('.')}` must be a value or one of {list_names(KINDS)},"
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
    remaining: dict[str, Any] = {}
    for name, leaf in _leaves(table):
        if name not in names:
            _put(remaining, name, leaf)
    return remaining


def overlaid(table: Mapping[str, Any], leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The nested table with other values at some dotted names; sections not named are shared."""
    merged = dict(table)
    for name, value in leaves.items():
        *sections, key = name.split(".")
        inner = merged
        for section in sections:
            # Each table on the way is copied, and no other: rows of many trials share the rest.
            inner[section] = dict(inner.get(section, {}))
            inner = inner[section]
        inner[key] = value
    return merged


def _copy(table: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in table.items()}
