"""Trials as plain data: the records that the ledger stores and every command reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import UnionType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from core.report import Outcome

State = Literal["waiting", "running", "finished", "stopped", "failed"]


class CurvePoint(NamedTuple):  # a tuple is made in a fifth of the time, and a sweep has very many
    """A point of a trial's curve: an evaluation before its end."""

    step: int
    wer: float
    gflops: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRecord:
    """One row of the ledger."""

    number: int
    state: State
    params: Mapping[str, Any] = field(default_factory=dict)
    """The sampled leaves, by dotted name under `[trial]`: `pruning.target_sparsity` and so on."""
    adjustments: Mapping[str, Any] = field(default_factory=dict)
    """Leaves that a retry had to change, by the same names: less memory, lower rates."""
    outcomes: tuple[Outcome, ...] = ()
    """None until the trial is finished; one for a point method, one a budget for a curve."""
    attempts: int = 0
    """Number of starts."""
    steps: int = 0
    """Optimizer steps of the last report."""
    total_steps: int = 0
    curve: tuple[CurvePoint, ...] = ()
    """Evaluations before the end, by step; early stopping compares them."""
    seconds: float = 0.0
    """Wall time spent, over all attempts."""
    wasted_seconds: float = 0.0
    """Of these, the time of lost attempts after their last report, and of repeated steps."""
    mlflow_run_id: str | None = None
    error: str | None = None
    """Why it failed or was stopped, in one line."""

    @property
    def is_over(self) -> bool:
        return self.state in ("finished", "stopped", "failed")

    @property
    def settings(self) -> dict[str, Any]:
        """The trial's parameters, with the adjustments of a retry."""
        return {**self.params, **self.adjustments}


def sort_by_number(records: Mapping[int, TrialRecord]) -> dict[int, TrialRecord]:
    """The records sorted by number, from 0 on.

    Raises:
        ValueError: if a number is missing.
    """
    # {0, 1, 3} has a gap: a trial was deleted by hand, and `len` would give number 3 a second time.
    if records.keys() != set(range(len(records))):
        raise ValueError("trials are missing between others")
    return {number: records[number] for number in range(len(records))}


def parse_record(values: Mapping[str, Any]) -> TrialRecord:
    """The record of plain values, which come from a file and may be anything.

    A point of the curve is `[step, wer, gflops]`.

    Raises:
        ValueError: naming the first wrong value.
    """
    outcomes = parse_outcomes(values["outcomes"])
    curve = tuple(map(_parse_point, values["curve"]))
    record: TrialRecord = _build(TrialRecord, {**values, "outcomes": outcomes, "curve": curve})
    return record


def parse_outcomes(values: Sequence[Any]) -> tuple[Outcome, ...]:
    """The outcomes of plain values, which may be anything.

    Raises:
        ValueError: naming the first wrong value.
    """
    return tuple(_build(Outcome, fields, "outcomes.") for fields in values)


def _parse_point(point: Any) -> CurvePoint:
    # Exact types, as `isinstance(True, int)` holds: [100, true, 2.5] is refused.
    if tuple(map(type, point)) not in POINTS:
        raise ValueError(f"`curve` must hold a step and two numbers, but {point!r} instead")
    return CurvePoint._make(point)


def _build(kind: type[Any], values: Any, prefix: str = "") -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"`{prefix}*` must be a table, but is {values!r} instead")  # noqa: TRY004
    # Names and types are hashable where values are not, so the check of a shape is done once.
    name = _invalid_field(kind.__name__, tuple(values), tuple(map(type, values.values())))
    if name is not None:
        allowed = KINDS[kind.__name__]
        if name not in allowed:
            raise ValueError(f"`{prefix}{name}` is not known")
        names = " or ".join(type_.__name__ for type_ in allowed[name])
        raise ValueError(f"`{prefix}{name}` must be {names}, but is {values[name]!r} instead")
    return kind(**values)


@cache  # ten thousand trials have a handful of shapes
def _invalid_field(kind: str, names: tuple[str, ...], types: tuple[type, ...]) -> str | None:
    """The first name that is no field, or whose value has a wrong type; None if there is none."""
    allowed = KINDS[kind]
    pairs = zip(names, types, strict=True)
    return next((name for name, type_ in pairs if type_ not in allowed.get(name, ())), None)


def _field_types(kind: type[Any]) -> dict[str, tuple[type, ...]]:
    """The types that plain values of each field may have, by name."""
    plain: dict[Any, tuple[type, ...]]
    plain = {float: (float, int), Literal: (str,), Mapping: (dict,)}
    types: dict[str, tuple[type, ...]] = {}
    for name, hint in get_type_hints(kind).items():
        # `float | None` allows float, int and NoneType, as JSON has 1 for 1.0; `Mapping[str, Any]`
        # allows dict, and `tuple[CurvePoint, ...]` allows tuple.
        members = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        origins: list[Any] = [get_origin(member) or member for member in members]
        types[name] = tuple(t for origin in origins for t in plain.get(origin, (origin,)))
    return types


NUMBER = (float, int)
POINTS = {(int, wer, gflops) for wer in NUMBER for gflops in NUMBER}
KINDS = {kind.__name__: _field_types(kind) for kind in (TrialRecord, Outcome)}
