"""Settings of pruning methods: their base class, and the groups that several methods share.

Each file of core/methods that has settings declares a class `Settings`, composed of these groups
and of fields of its own. They stand in the table `[trial.pruning.NAME]` of the method.
"""

from typing import ClassVar, Literal

from pydantic import Field

from core.config.base import Config

GateKind = Literal["sampled", "straight_through", "annealed"]


class MethodSettings(Config):
    """Settings of one pruning method."""

    reads: ClassVar[tuple[str, ...]] = ()
    """Keys outside the method's table, such as `boosting.share`, that other methods do not read."""
    ignores: ClassVar[tuple[str, ...]] = ()
    """Keys outside the method's table that other methods read and this one does not."""


class SearchSettings(MethodSettings):
    """Settings of methods that train the weights while they search."""

    learning_rate: float = Field(3e-4, gt=0, le=1)
    """Learning rate of the weights during the search."""


class GateSettings(SearchSettings):
    """Settings of methods that train gates together with the weights."""

    # A step of Adam is at most about as long as its rate: at 0.1, a gate that starts at 3 can be
    # closed after about 50 steps.
    gate_lr: float = Field(0.1, gt=0, le=10)
    """Learning rate of Adam on the gates' log_alpha."""
    gate_travel: float = Field(0.0, ge=0, le=1000)
    """If not 0, the distance that a log_alpha can travel in the whole search, which replaces
    `gate_lr`."""


class ConcreteSettings(GateSettings):
    """Settings of methods that train hard-concrete gates."""

    gates: GateKind = "sampled"
    """Values of the gates in a step: as drawn, rounded to 0 or 1, or drawn at a temperature that
    falls during the search."""
    start_from: str = ""
    """Pruning method whose scores order the gates at the start, the best unit of an axis the most
    open; it must score units without training. If empty, all gates start alike."""
    # Example: log_alpha 3 and spread 2 start the best unit of an axis at 5 and the last one at 1.
    start_spread: float = Field(2.0, ge=0, le=8)
    """Distance by which `start_from` moves the log_alpha of the best unit up and of the last
    down."""
    # A start at 0 is open with probability 0.832: 17 % would be removed while the target is still
    # 0.
    log_alpha: float = Field(3.0, ge=-8, le=8)
    """Start of the gates of single units; 3 is open with probability 0.990."""
    module_log_alpha: float = Field(4.6, ge=-8, le=8)
    """Start of the gates of whole modules and of the residual width."""


class WarmedTargetSettings(MethodSettings):
    """Settings of methods whose target rises during a warm-up, held by two multipliers."""

    lambda_lr: float = Field(0.1, gt=0, le=100)
    """Learning rate of Adam's ascent on the two multipliers."""
    lambda_quadratic: float = Field(50.0, ge=0, le=1e6)
    """Start of the quadratic multiplier; at 0 short runs oscillate."""
    warmup_share: float = Field(0.3, ge=0, le=1)
    """Share of the search in which the target rises linearly to its value."""
