"""What the ledger knows of a trial, as plain data that every view shares."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import UnionType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from core.report import Outcome

State = Literal["waiting", "running", "finished", "stopped", "failed"]


class CurvePoint(NamedTuple):  # a tuple is made in a fifth of the time, and a sweep has very many
    """A point of a trial's curve: what it reported on its way."""

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
    """How often it was started."""
    steps: int = 0
    """Optimizer steps last heard of."""
    total_steps: int = 0
    curve: tuple[CurvePoint, ...] = ()
    """Evaluations on the way, by step; early stopping compares them."""
    seconds: float = 0.0
    """Wall time spent, over all attempts."""
    wasted_seconds: float = 0.0
    """Of these, what lost attempts did after their last report, and what was done again."""
    mlflow_run_id: str | None = None
    error: str | None = None
    """Why it failed or was stopped, in one line."""

    @property
    def is_over(self) -> bool:
        return self.state in ("finished", "stopped", "failed")

    @property
    def settings(self) -> dict[str, Any]:
        """What the trial is run with."""
        return {**self.params, **self.adjustments}


def in_order(records: Mapping[int, TrialRecord]) -> dict[int, TrialRecord]:
    """The same by number, from 0 on.

    Raises:
        ValueError: if one is missing between others.
    """
    if records.keys() != set(range(len(records))):
        raise ValueError("trials are missing between others")
    return {number: records[number] for number in range(len(records))}


def record_of(values: Mapping[str, Any]) -> TrialRecord:
    """The record that plain values say; they come from a file, which may say anything.

    A point of the curve is `[step, wer, gflops]`.

    Raises:
        ValueError: naming the first value that cannot be.
    """
    outcomes = tuple(_read(Outcome, told, "outcomes.") for told in values["outcomes"])
    curve = tuple(map(_heard, values["curve"]))
    record: TrialRecord = _read(TrialRecord, {**values, "outcomes": outcomes, "curve": curve})
    return record


def _heard(point: Any) -> CurvePoint:
    if tuple(map(type, point)) not in POINTS:
        raise ValueError(f"`curve` must hold a step and two numbers, but {point!r} instead")
    return CurvePoint._make(point)


def _read(kind: type[Any], values: Any, prefix: str = "") -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"`{prefix}*` must be a table, but is {values!r} instead")  # noqa: TRY004
    name = _misfit(kind.__name__, tuple(values), tuple(map(type, values.values())))
    if name is not None:
        allowed = KINDS[kind.__name__]
        if name not in allowed:
            raise ValueError(f"`{prefix}{name}` is not known")
        names = " or ".join(each.__name__ for each in allowed[name])
        raise ValueError(f"`{prefix}{name}` must be {names}, but is {values[name]!r} instead")
    return kind(**values)


@cache  # ten thousand trials have a handful of shapes
def _misfit(kind: str, names: tuple[str, ...], types: tuple[type, ...]) -> str | None:
    """The first name that is not the kind's, or has a type that its field cannot have."""
    allowed = KINDS[kind]
    given = zip(names, types, strict=True)
    return next((name for name, each in given if each not in allowed.get(name, ())), None)


def _kinds(kind: type[Any]) -> dict[str, tuple[type, ...]]:
    """Of each field, the types that plain values may have."""
    plain: dict[Any, tuple[type, ...]]
    plain = {float: (float, int), Literal: (str,), Mapping: (dict,)}
    found: dict[str, tuple[type, ...]] = {}
    for name, hint in get_type_hints(kind).items():
        each = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        origins: list[Any] = [get_origin(part) or part for part in each]
        found[name] = tuple(t for part in origins for t in plain.get(part, (part,)))
    return found


NUMBER = (float, int)
POINTS = {(int, wer, gflops) for wer in NUMBER for gflops in NUMBER}
KINDS = {kind.__name__: _kinds(kind) for kind in (TrialRecord, Outcome)}
