"""What the ledger knows of a trial, as plain data that every view shares."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from core.report import Outcome

State = Literal["waiting", "running", "finished", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Heard:
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
    curve: tuple[Heard, ...] = ()
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


def _heard(point: Any) -> Heard:
    step, wer, gflops = point
    if type(step) is not int or type(wer) not in NUMBER or type(gflops) not in NUMBER:
        raise ValueError(f"`curve` must hold a step and two numbers, but {point!r} instead")
    return Heard(step=step, wer=wer, gflops=gflops)


def _read(kind: type[Any], values: Any, prefix: str = "") -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"`{prefix}*` must be a table, but is {values!r} instead")  # noqa: TRY004
    allowed = KINDS[kind]
    for name, value in values.items():
        if name not in allowed:
            raise ValueError(f"`{prefix}{name}` is not known")
        if type(value) not in allowed[name]:
            names = " or ".join(each.__name__ for each in allowed[name])
            raise ValueError(f"`{prefix}{name}` must be {names}, but is {value!r} instead")
    return kind(**values)


def _kinds(kind: type[Any]) -> dict[str, tuple[type, ...]]:
    """Of each field, the types that plain values may have."""
    plain: dict[Any, tuple[type, ...]]
    plain = {float: (float, int), State: (str,), Mapping: (dict,)}
    found: dict[str, tuple[type, ...]] = {}
    for name, hint in get_type_hints(kind).items():
        each = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        origins: list[Any]
        origins = [part if part is State else get_origin(part) or part for part in each]
        found[name] = tuple(t for part in origins for t in plain.get(part, (part,)))
    return found


NUMBER = (float, int)
KINDS = {kind: _kinds(kind) for kind in (TrialRecord, Outcome)}
