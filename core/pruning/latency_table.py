"""Latency as a resource: milliseconds of a machine, by a table that was measured on it.

For each kind of part the table holds the time of its units at a width, on a grid of both, and is
read between the points by bilinear interpolation (as HAT and others predict latency from measured
times; Wang et al., 2020), so that an expected count has a gradient. It is monotone: measured times
are brought into order by isotonic regression, and nothing gets faster by being larger.

The time of a model is the sum over its parts; those of the front end are its two convolutions, by
the channels of the second and of the first, and the projection that follows. What whole models were
measured to take for such a sum corrects it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, PrivateAttr, model_validator
from scipy.optimize import isotonic_regression
from torch import Tensor

from core.config.base import Config, ConfigError
from core.conformer.axes import Axis, Number
from core.conformer.model import Conformer
from core.files import atomic_write
from core.outside_files import LARGEST_SETTINGS, read_json

Part = Literal[
    "frontend", "projection", "feedforward", "attention", "convolution", "norm", "output"
]
PART_OF: Mapping[str, Part] = {
    "inner": "feedforward",
    "head": "attention",
    "channel": "convolution",
}
"""The part that units of a kind make up."""


class Grid(Config):
    """Times of one kind of part."""

    units: list[int] = Field(min_length=1)
    """Its own units, rising; a part that has none of its own has one."""
    width: list[int] = Field(min_length=1)
    """Of what comes in, rising: the residual width, or the first convolution's channels."""
    ms: list[list[float]] = Field(min_length=1)
    """Milliseconds, a row for each number of units."""

    _tensors: dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]] = PrivateAttr(
        default_factory=dict
    )

    @model_validator(mode="after")
    def _is_monotone(self) -> "Grid":
        table = [len(self.units), len(self.width)]
        if [len(self.ms), *{len(row) for row in self.ms}] != table:
            raise ValueError(f"`ms` must be {table[0]} rows of {table[1]} times, but is not")
        rising = np.diff(self.units).min(initial=1) > 0 and np.diff(self.width).min(initial=1) > 0
        times = np.array(self.ms)
        falls = [float(np.diff(times, axis=axis).min(initial=0)) for axis in (0, 1)]
        if not rising or times.min() < 0 or min(falls) < 0:
            raise ValueError("`units`, `width` and `ms` must rise, but a table does not")
        return self

    def at(
        self, units: Float[Tensor, " parts"], width: Float[Tensor, " parts"]
    ) -> Float[Tensor, " parts"]:
        """Milliseconds of parts of these sizes; beyond its ends the table goes on as a constant."""
        of_units, of_width, ms = self._on(units.device, units.dtype)
        rows = _hats(of_units, units) @ ms
        return (rows * _hats(of_width, width)).sum(-1)

    def _on(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Copied to a device once: a training step must not wait for it."""
        if (device, dtype) not in self._tensors:
            self._tensors[device, dtype] = tuple(
                torch.tensor(values, device=device, dtype=dtype)
                for values in (self.units, self.width, self.ms)
            )
        return self._tensors[device, dtype]


class LatencyTable(Config):
    """What one machine takes for one utterance, batch 1."""

    format: Literal[1] = 1
    utterance_seconds: float = Field(gt=0)
    device: str
    """Of what kind: `cpu` or `cuda`."""
    threads: int = Field(ge=1)
    parts: dict[Part, Grid]
    whole: list[Annotated[list[float], Field(min_length=2, max_length=2)]] = Field([])
    """Milliseconds of whole models, rising: what their parts add up to, and what was measured of
    them. It is linear from nothing to the first and between two, and constant beyond the last;
    without any, the sum stands."""

    _knots: dict[tuple[torch.device, torch.dtype], Tensor] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _whole_models_rise(self) -> "LatencyTable":
        steps = np.diff(np.array([[0.0, 0.0], *self.whole]), axis=0)
        if steps.size and (steps[:, 0].min() <= 0 or steps[:, 1].min() < 0):
            raise ValueError("`whole` must rise from 0, but does not")
        return self

    def ms(self, axes: Sequence[Axis], counts: Mapping[str, Number]) -> float | Tensor:
        """Milliseconds of a model of which so many units stay, or are expected to.

        Args:
            axes: of the model.
            counts: of each axis, those of whole modules and blocks included.
        """
        like = next((n for n in counts.values() if isinstance(n, Tensor)), None)
        is_exact = like is None
        like = torch.zeros((), dtype=torch.float64) if like is None else like
        by_part: dict[Part, list[Term]] = {}
        for term in _terms(axes, counts):
            by_part.setdefault(term.part, []).append(term)
        whole = like.new_zeros(())
        for part, terms in by_part.items():
            columns = zip(*((term.share, term.units, term.width) for term in terms), strict=True)
            share, units, width = (_stacked(column, like) for column in columns)
            whole = whole + (share * self.parts[part].at(units, width)).sum()
        whole = self._as_measured(whole)
        return float(whole) if is_exact else whole

    def _as_measured(self, ms: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """What whole models take whose parts add up to so much."""
        if not self.whole:
            return ms
        key = (ms.device, ms.dtype)
        if key not in self._knots:
            self._knots[key] = torch.tensor([[0.0, 0.0], *self.whole]).to(ms)
        told, measured = self._knots[key].T
        return _hats(told, ms[None])[0] @ measured

    def scaled(self, factor: float) -> "LatencyTable":
        """The same machine, so many times as slow."""
        values = self.model_dump()
        for grid in values["parts"].values():
            grid["ms"] = [[factor * time for time in row] for row in grid["ms"]]
        values["whole"] = [[factor * time for time in pair] for pair in values["whole"]]
        return LatencyTable.parse(values)

    def check_fits(self, model: Conformer, seconds: float) -> None:
        """See that all of a model lies within the table.

        Raises:
            ConfigError: naming what does not.
        """
        axes = model.axes()
        _check_is_plain(model, axes)
        if self.utterance_seconds != seconds:
            raise ConfigError(
                f"`pruning.utterance_seconds` must be {self.utterance_seconds:g}, as in the table"
                f" of latencies, but is {seconds:g} instead; measure another table"
            )
        for term in _terms(axes, {axis.name: axis.size for axis in axes}):
            grid = self.parts.get(term.part)
            if grid is None or term.units > grid.units[-1] or term.width > grid.width[-1]:
                raise ConfigError(
                    f"The table of latencies must hold `{term.part}` of {term.units} units at width"
                    f" {term.width}, but does not; measure one with this teacher"
                )

    def save(self, file: Path) -> None:
        atomic_write(file, json.dumps(self.model_dump(), indent=1))

    @classmethod
    def load(cls, file: Path) -> "LatencyTable":
        """Read a table; times that do not rise were not measured with care, and are refused.

        Raises:
            ConfigError: in one line naming the file.
        """
        try:
            values = read_json(file, largest=LARGEST_SETTINGS)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"`pruning.latency_table` must be a file of JSON, but `{file}`: {error}"
            ) from None
        try:
            return cls.parse(values)
        except ConfigError as error:
            first = str(error).splitlines()[0]
            raise ConfigError(f"`{file}` must be a table of latencies, but {first}") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """What one part of a model adds."""

    part: Part
    share: Number
    """How much of it is there."""
    units: Number
    width: Number


def monotone(ms: Float[np.ndarray, "units width"]) -> list[list[float]]:
    """The table that rises both ways and is near to the one measured.

    Isotonic regression keeps order, so rows that rise still do after columns have been made to.
    """
    for axis in (1, 0):
        ms = np.apply_along_axis(lambda times: isotonic_regression(times).x, axis, ms)
    rows: list[list[float]] = ms.tolist()
    return rows


def _check_is_plain(model: Conformer, axes: Sequence[Axis]) -> None:
    is_linear = any(block.linear_features for block in model.shape.blocks)
    if is_linear or any(axis.kind == "rank" for axis in axes):
        raise ConfigError(
            "`pruning.resource` and `pruning.also` must not name latency where layers are factored"
            " or attention runs in linear time, as no table knows their time, but one does;"
            " leave out `rank` of `pruning.axes`, or choose another method"
        )


def _terms(axes: Sequence[Axis], counts: Mapping[str, Number]) -> Iterator[Term]:
    width = counts["width"]
    sub1, sub2 = counts.get("frontend.sub1", 1), counts.get("frontend.sub2", 1)
    yield Term(part="frontend", share=1, units=sub2, width=sub1)
    # A third convolution's channels count where they are read.
    last = counts.get("frontend.sub3", sub2)
    yield Term(part="projection", share=1, units=last, width=width)
    yield Term(part="output", share=1, units=1, width=width)
    parents = {axis.name: axis.parent for axis in axes}
    for axis in axes:
        units = counts[axis.name]
        if axis.kind == "block":
            yield Term(part="norm", share=units, units=1, width=width)
        elif axis.kind in PART_OF and axis.parent is not None:
            block = parents[axis.parent]
            assert block is not None, "a module lies in a block"
            share = counts[axis.parent] * counts[block]
            yield Term(part=PART_OF[axis.kind], share=share, units=units, width=width)


def _stacked(counts: Sequence[Number], like: Tensor) -> Float[Tensor, " parts"]:
    """Filled in where it stands: a training step must not wait for a copy."""
    if not any(isinstance(count, Tensor) for count in counts) and like.device.type == "cpu":
        return torch.tensor(counts, dtype=like.dtype)
    each = [n if isinstance(n, Tensor) else like.new_full((), n) for n in counts]
    return torch.stack(each)


def _hats(
    points: Float[Tensor, " points"], x: Float[Tensor, " parts"]
) -> Float[Tensor, "parts points"]:
    """How much each point of a grid counts at x: 1 on it, falling to 0 at both its neighbours."""
    passed = ((x[:, None] - points[:-1]) / points.diff()).clamp(0, 1)
    ones, zeros = torch.ones_like(x)[:, None], torch.zeros_like(x)[:, None]
    return torch.cat((ones, passed), 1) - torch.cat((passed, zeros), 1)
