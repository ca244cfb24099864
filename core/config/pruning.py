"""Configuration of pruning: what is removed, how much of it, and by which method.

It is the section `pruning` of a trial's configuration: frozen, strict, and documented field by
field. Each method with settings of its own has a table here under its name.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

from pydantic import Field, create_model, model_serializer
from pydantic import model_validator as validator

from core.config.base import Config
from core.config.methods import (
    method_names,
    methods_with_setting,
    misplaced_key_line,
    settings_tables,
    unused_key_line,
)
from core.config.settings import ConcreteSettings, MethodSettings

Resource = Literal["flops", "params", "latency"]
AxisKind = Literal[
    "frontend",
    "width",
    "head",
    "inner",
    "channel",
    "module",
    "block",
    "rank",
    "embedding",
    "unit",
    "joint",
]
Repair = Literal["none", "mask", "ls", "sequential"]
RepairSetting = Literal["auto", "none", "mask", "ls", "sequential"]
SettingsT = TypeVar("SettingsT", bound=MethodSettings)

if TYPE_CHECKING:
    _MethodTables = Config
else:  # a field for each file of core/methods that has settings: no type checker can see them
    _MethodTables = create_model(
        "_MethodTables",
        __base__=Config,
        **{name: (table | None, None) for name, table in settings_tables().items()},
    )


class PruningConfig(_MethodTables):
    """Resources to remove, how much of them, and the method that decides what to remove."""

    method: str = "l0"
    """Name of a pruning method: a file of core/methods."""
    resource: Resource = "flops"
    """Resource that `target_sparsity` counts; latency by a table measured with the teacher."""
    target_sparsity: float = Field(0.5, ge=0, lt=1)
    """Share of the whole model's resource to remove."""
    also: dict[Resource, Annotated[float, Field(ge=0, lt=1)]] = Field({})
    """Shares of other resources to remove at the same time: all are met, each tightly if it can."""
    latency_table: str = ""
    """File with another machine's table of latencies; empty to measure this one's."""
    multiple_of: int = Field(1, ge=1, le=1024)
    """Divisor of the remaining widths, inner units and channels where the budget permits: 8 or 16
    where the device's matrix products are slower at odd sizes."""
    utterance_seconds: float = Field(10.0, gt=0.2, le=120)
    """Length of the utterance at which FLOPs and latency are stated, in seconds."""
    further_targets: list[float] = Field([], max_length=16)
    """More shares to remove, each an outcome of the same trial, by methods whose one search serves
    every budget; methods that learn for one budget do not read them."""
    axes: list[AxisKind] = Field(
        [kind for kind in get_args(AxisKind) if kind != "block"], min_length=1
    )
    """Kinds of units that may be removed; only factored models have `rank`, and only transducers
    the last three, of which `unit` are those of an LSTM; `interctc` removes blocks."""
    steps: int = Field(400, ge=0, le=10_000_000)
    """Steps of the search; methods that do not train while they search spend them on tuning."""
    repair: RepairSetting = "auto"
    """Adjustment of the consumers of removed units: none, by scaling, by least squares, or by least
    squares followed by all parts in order of computation, towards the unpruned residual stream.
    With `auto`, the method's own: see its page."""
    calibration_batches: int = Field(8, ge=1, le=10_000)
    """Batches of training speech for repair and for batch-norm statistics."""

    @validator(mode="before")
    @classmethod
    def _settings_are_of_the_method(cls, values: Any) -> Any:
        """Refuses settings of methods that are not chosen; the method in use has its defaults."""
        if not isinstance(values, Mapping):
            return values
        methods = methods_in_use(values)
        lines = [*misplaced_key_lines(values, methods), *_foreign_key_lines(values, methods)]
        if lines:
            raise ValueError("\n".join(lines))
        # A method without a table in the file gets an empty one, so that its defaults are written
        # out.
        defaults: dict[str, Any] = {name: {} for name in methods if name in settings_tables()}
        return {**defaults, **values}

    @validator(mode="after")
    def _methods_are_files(self) -> "PruningConfig":
        start = self.settings(ConcreteSettings).start_from
        names = {"method": self.method, **({f"{self.method}.start_from": start} if start else {})}
        for key, name in names.items():
            if name not in method_names():
                near = difflib.get_close_matches(name, method_names(), n=1)
                hint = f"; did you mean `{near[0]}`?" if near else ""
                raise ValueError(
                    f"`pruning.{key}` must be one of {', '.join(method_names())},"
                    f" but is `{name}` instead{hint}"
                )
        return self

    @validator(mode="after")
    def _targets_are_shares(self) -> "PruningConfig":
        for target in self.further_targets:
            if not 0 <= target < 1:
                raise ValueError(
                    f"`further_targets` must lie in [0, 1), but one is {target} instead"
                )
        if self.resource in self.also:
            raise ValueError(
                "`pruning.also` must name other resources than `pruning.resource`, but names"
                f" `{self.resource}` instead; its share is `pruning.target_sparsity`"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_absent_tables(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        # Tables of other methods are None: a stored configuration names the method in use alone.
        return {name: value for name, value in handler(self).items() if value is not None}

    @property
    def targets(self) -> dict[Resource, float]:
        """The share to remove of each resource that has a target, `resource` first."""
        return {self.resource: self.target_sparsity, **self.also}

    def settings(self, kind: type[SettingsT]) -> SettingsT:
        """Returns the method's settings of one kind.

        Where the method has no such settings they have their defaults: early stopping asks for the
        warm-up of any method.
        """
        table = getattr(self, self.method, None)
        # `l0` asked for `GateSettings`: its own `gate_lr` and `gate_travel`, without
        # `shrink_rounds`.
        values = {} if table is None else table.model_dump(include=set(kind.model_fields))
        return kind.model_validate(values)


def methods_in_use(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the pruning method and, if there is one, the method by which its gates start.

    Args:
        values: keys of `[trial.pruning]` as TOML gives them, checked or not.
    """
    method = values.get("method", PruningConfig.model_fields["method"].default)
    table = values.get(method) if isinstance(method, str) else None
    start = table.get("start_from") if isinstance(table, Mapping) else None
    return tuple(name for name in (method, start) if isinstance(name, str) and name)


def without_other_methods(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a table of `[trial.pruning]` without the tables of methods that it does not use."""
    others = settings_tables().keys() - set(methods_in_use(values))
    return {name: value for name, value in values.items() if name not in others}


def misplaced_key_lines(values: Mapping[str, Any], methods: tuple[str, ...]) -> Iterator[str]:
    """Yields an error line for each key of a table of `[trial.pruning]` that one method owns.

    Args:
        values: keys of `[trial.pruning]`.
        methods: the pruning methods in use.
    """
    for key in values:
        if key not in PruningConfig.model_fields and methods_with_setting(key):
            yield misplaced_key_line(key, methods)


def _foreign_key_lines(values: Mapping[str, Any], methods: tuple[str, ...]) -> Iterator[str]:
    for name in settings_tables():
        table = values.get(name)
        # With an unknown method, `_methods_are_files` says so, and these lines would only hide it.
        if name in methods or table is None or not set(methods) <= set(method_names()):
            continue
        keys = table if isinstance(table, Mapping) else {}
        for key, value in keys.items():
            yield unused_key_line(f"pruning.{name}.{key}", value, methods)
