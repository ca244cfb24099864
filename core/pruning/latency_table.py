"""Latency as a resource: milliseconds on one machine, from a table measured there.

For each component (attention, convolution ...) the table holds times on a grid of units and width.
Between grid points it is interpolated bilinearly (as HAT and others predict latency from measured
times; Wang et al., 2020), so that an expected count has a gradient. It is monotone: isotonic
regression corrects measured times so that nothing gets faster by being larger.

The time of a model is the sum over its components; those of the front end are its two convolutions,
by the channels of the second and of the first, and the projection that follows. Times measured of
whole models correct that sum.
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

Component = Literal[
    "frontend", "projection", "feedforward", "attention", "convolution", "norm", "output"
]
COMPONENT_OF: Mapping[str, Component] = {
    "inner": "feedforward",
    "head": "attention",
    "channel": "convolution",
}
"""The component that units of a kind belong to."""


class Grid(Config):
    """Times of one component."""

    units: list[int] = Field(min_length=1)
    """Its own units, increasing; a component without units of its own has one."""
    width: list[int] = Field(min_length=1)
    """The width of its input, increasing: residual width, or the first convolution's channels."""
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
        # A grid of one row or column has no differences: `initial` stands for them.
        rising = np.diff(self.units).min(initial=1) > 0 and np.diff(self.width).min(initial=1) > 0
        times = np.array(self.ms)
        falls = [float(np.diff(times, axis=axis).min(initial=0)) for axis in (0, 1)]
        if not rising or times.min() < 0 or min(falls) < 0:
            raise ValueError("`units`, `width` and `ms` must be increasing, but are not")
        return self

    def at(
        self, units: Float[Tensor, " parts"], width: Float[Tensor, " parts"]
    ) -> Float[Tensor, " parts"]:
        """Return milliseconds of components of these sizes; constant beyond the table's ends."""
        of_units, of_width, ms = self._on(units.device, units.dtype)
        # Bilinear: (parts, unit points) (unit points, width points) are times at each width of the
        # grid, which the weights of the width then mix.
        rows = _hats(of_units, units) @ ms
        return (rows * _hats(of_width, width)).sum(-1)

    def _on(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Return the table on a device, copied once: a training step must not wait for it."""
        if (device, dtype) not in self._tensors:
            self._tensors[device, dtype] = tuple(
                torch.tensor(values, device=device, dtype=dtype)
                for values in (self.units, self.width, self.ms)
            )
        return self._tensors[device, dtype]


class LatencyTable(Config):
    """Times of model components on one machine, for one utterance in a batch of 1."""

    format: Literal[1] = 1
    utterance_seconds: float = Field(gt=0)
    device: str
    """The kind of device: `cpu` or `cuda`."""
    threads: int = Field(ge=1)
    parts: dict[Component, Grid]
    whole: list[Annotated[list[float], Field(min_length=2, max_length=2)]] = Field([])
    """Milliseconds of whole models, increasing: the sum of their components, and the measured time.
    Between pairs, and from (0, 0) to the first, the correction is linear; beyond the last it is
    constant. Without pairs, sums are not corrected."""

    _knots: dict[tuple[torch.device, torch.dtype], Tensor] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _whole_models_rise(self) -> "LatencyTable":
        # Pairs (10, 8) and (20, 20): steps (10, 8) and (10, 12). Two equal sums have no slope.
        steps = np.diff(np.array([[0.0, 0.0], *self.whole]), axis=0)
        if steps.size and (steps[:, 0].min() <= 0 or steps[:, 1].min() < 0):
            raise ValueError("`whole` must be increasing from 0, but is not")
        return self

    def ms(self, axes: Sequence[Axis], counts: Mapping[str, Number]) -> float | Tensor:
        """Return milliseconds of a model with these counts of units, exact or expected.

        Args:
            axes: of the model.
            counts: open units of each axis, modules and blocks included.
        """
        # Expected counts are tensors: the sum then stays on their device and differentiable.
        like = next((n for n in counts.values() if isinstance(n, Tensor)), None)
        is_exact = like is None
        like = torch.zeros((), dtype=torch.float64) if like is None else like
        # One lookup for each component, of all blocks at once, instead of one for each module.
        by_part: dict[Component, list[Term]] = {}
        for term in _terms(axes, counts):
            by_part.setdefault(term.part, []).append(term)
        whole = like.new_zeros(())
        for part, terms in by_part.items():
            columns = zip(*((term.share, term.units, term.width) for term in terms), strict=True)
            share, units, width = (_stack(column, like) for column in columns)
            whole = whole + (share * self.parts[part].at(units, width)).sum()
        whole = self._as_measured(whole)
        return float(whole) if is_exact else whole

    def _as_measured(self, ms: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Correct a sum of components by the times measured of whole models.

        For example, with `whole` = [[10, 8], [20, 20]] a sum of 15 becomes 14.
        """
        if not self.whole:
            return ms
        key = (ms.device, ms.dtype)
        if key not in self._knots:
            self._knots[key] = torch.tensor([[0.0, 0.0], *self.whole]).to(ms)
        sums, measured = self._knots[key].T
        # Linear between pairs: at 15 the weights of (0, 8, 20) are (0, 0.5, 0.5).
        return _hats(sums, ms[None])[0] @ measured

    def scale(self, factor: float) -> "LatencyTable":
        """Return the table of a machine that is slower by this factor."""
        values = self.model_dump()
        for grid in values["parts"].values():
            grid["ms"] = [[factor * time for time in row] for row in grid["ms"]]
        values["whole"] = [[factor * time for time in pair] for pair in values["whole"]]
        return LatencyTable.parse(values)

    def check_fits(self, model: Conformer, seconds: float) -> None:
        """Check that all of a model lies within the table.

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
        """Read a table; one with times that are not increasing is refused.

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
    """One component's contribution to the time of a model."""

    part: Component
    share: Number
    """The probability that it is there: 1 or 0, or an expectation."""
    units: Number
    width: Number


def monotone(ms: Float[np.ndarray, "units width"]) -> list[list[float]]:
    """Return a table close to the measured one that is increasing in both directions.

    Isotonic regression preserves order, so rows stay increasing when columns are made so.
    """
    # Neighbors that fall are pooled: a row of 3, 1 and 5 ms becomes 2, 2 and 5.
    for axis in (1, 0):
        ms = np.apply_along_axis(lambda times: isotonic_regression(times).x, axis, ms)
    rows: list[list[float]] = ms.tolist()
    return rows


def _check_is_plain(model: Conformer, axes: Sequence[Axis]) -> None:
    is_linear = any(block.linear_features for block in model.shape.blocks)
    if is_linear or any(axis.kind == "rank" for axis in axes):
        raise ConfigError(
            "`pruning.resource` and `pruning.also` must not name latency where layers are factored"
            " or attention runs in linear time, as tables hold no times of these, but one does;"
            " leave out `rank` of `pruning.axes`, or choose another method"
        )


def _terms(axes: Sequence[Axis], counts: Mapping[str, Number]) -> Iterator[Term]:
    width = counts["width"]
    sub1, sub2 = counts.get("frontend.sub1", 1), counts.get("frontend.sub2", 1)
    # Two convolutions in one grid: the second one's channels are its units, the first one's its
    # width.
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
        elif axis.kind in COMPONENT_OF and axis.parent is not None:
            block = parents[axis.parent]
            assert block is not None, "a module lies in a block"
            # A module is there if its gate and its block's gate are open, and these are
            # independent: with probabilities 0.9 and 0.5 it costs 0.45 of its time.
            share = counts[axis.parent] * counts[block]
            yield Term(part=COMPONENT_OF[axis.kind], share=share, units=units, width=width)


def _stack(counts: Sequence[Number], like: Tensor) -> Float[Tensor, " parts"]:
    """Stack counts on the device of `like`: a training step must not wait for a copy."""
    if not any(isinstance(count, Tensor) for count in counts) and like.device.type == "cpu":
        return torch.tensor(counts, dtype=like.dtype)
    tensors = [n if isinstance(n, Tensor) else like.new_full((), n) for n in counts]
    return torch.stack(tensors)


def _hats(
    points: Float[Tensor, " points"], x: Float[Tensor, " parts"]
) -> Float[Tensor, "parts points"]:
    """Return the weight of each grid point at x: 1 on it, falling to 0 at both its neighbors.

    For example, on the grid (0, 10, 30) the weights at x = 15 are (0, 0.75, 0.25).
    """
    # The part of each interval that lies below x: (1, 0.25) at 15. A point's weight is what is
    # covered before it minus what is covered after it: (1, 1, 0.25) - (1, 0.25, 0).
    passed = ((x[:, None] - points[:-1]) / points.diff()).clamp(0, 1)
    ones, zeros = torch.ones_like(x)[:, None], torch.zeros_like(x)[:, None]
    return torch.cat((ones, passed), 1) - torch.cat((passed, zeros), 1)
