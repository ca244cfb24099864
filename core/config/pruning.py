"""What a person may say about pruning: what goes, how much of it, and how the choice is found.

The part `pruning` of a trial's configuration; frozen, strict, and documented field by field.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from core.config.base import Config

Resource = Literal["flops", "params", "latency"]
AxisKind = Literal["frontend", "width", "head", "inner", "channel", "module", "block", "rank"]
Repair = Literal["none", "mask", "ls"]
GateKind = Literal["sampled", "straight_through", "annealed"]


class PruningConfig(Config):
    """What to remove, how much of it, and how the choice is found."""

    method: str = "l0"
    """Name of a pruning method: a file of core/methods."""
    resource: Resource = "flops"
    """What `target_sparsity` counts; latency by a table measured beside the teacher."""
    target_sparsity: float = Field(0.5, ge=0, lt=1)
    """Share of the whole model's resource to remove."""
    also: dict[Resource, Annotated[float, Field(ge=0, lt=1)]] = Field({})
    """Shares of other resources to remove at the same time: all are met, each tightly if it can."""
    latency_table: str = ""
    """File with another machine's table of latencies; empty to measure this one's."""
    multiple_of: int = Field(1, ge=1, le=1024)
    """Kept widths, inner units and channels are multiples of it where the budget permits: 8 or 16
    where the device's matrix products are slower at odd sizes."""
    utterance_seconds: float = Field(10.0, gt=0.2, le=120)
    """Length of the utterance at which FLOPs and latency are stated, in seconds."""
    further_targets: list[float] = Field([], max_length=16)
    """More shares to remove, each an outcome of the same trial, by methods whose one search serves
    every budget; methods that learn for one budget leave them out."""
    axes: list[AxisKind] = Field(
        ["frontend", "width", "head", "inner", "channel", "module", "rank"], min_length=1
    )
    """Which kinds of units may go; only factored models have `rank`; `interctc` cuts blocks."""
    depth_order: Literal["greedy", "truncate"] = "greedy"
    """Which blocks `interctc` removes first: those least missed on some training speech, found one
    after the other, or the last."""
    steps: int = Field(400, ge=0, le=10_000_000)
    """Steps of the search; methods that do not train while they search spend them on tuning."""
    learning_rate: float = Field(3e-4, gt=0, le=1)
    """Rate of the weights while gates are learned."""
    gate_lr: float = Field(0.1, gt=0, le=10)
    """Rate of Adam on the gates' log_alpha."""
    gate_travel: float = Field(0.0, ge=0, le=1000)
    """If not 0, how far a log_alpha can go in the whole search; it stands in for `gate_lr`."""
    gates: GateKind = "sampled"
    """Of `l0` and `constrained`: as drawn, rounded to 0 or 1, or drawn ever colder."""
    shrink_rounds: int = Field(1, ge=1, le=100)
    """Of `l0`: in how many rounds it removes, each the same share of what is left; after one, what
    it would cut is shut for good and all other gates start anew."""
    start_from: str = ""
    """Method by whose scores these gates start in order, the best of an axis the most open; one
    that needs no training. Without one they start alike."""
    start_spread: float = Field(2.0, ge=0, le=8)
    """How far `start_from` moves the log_alpha of the best up and of the last down."""
    lambda_lr: float = Field(0.1, gt=0, le=100)
    """Rate of Adam's ascent on the two multipliers."""
    lambda_quadratic: float = Field(50.0, ge=0, le=1e6)
    """The quadratic multiplier's start; at 0 short runs swing."""
    warmup_share: float = Field(0.3, ge=0, le=1)
    """Share of the search in which the target rises linearly to its value."""
    smallest: float = Field(0.1, gt=0, lt=1)
    """Of `acip`: the share of the resource at which its masks stand still; all larger sizes lie on
    the way."""
    order_share: float = Field(0.25, gt=0, lt=1)
    """Of `family`: the share of the search in which gates find the order; then all sizes learn."""
    drawn_sizes: int = Field(2, ge=0, le=16)
    """Of `family`: how many sizes a step draws beside the largest and the smallest."""
    constraint: Literal["model", "kind"] = "model"
    """Of `constrained`: one for the whole model's resource, or one for the units of each kind."""
    log_alpha: float = Field(3.0, ge=-8, le=8)
    """Start of the gates of single units; 3 is open with probability 0.990."""
    module_log_alpha: float = Field(4.6, ge=-8, le=8)
    """Start of the gates of whole modules and of the residual width."""
    groups: int = Field(8, ge=1, le=65_536)
    """Of `ld` and `mope`: into how many groups the units of an axis are put, shut one at a time."""
    rounds: int = Field(8, ge=1, le=1000)
    """Of `cpd`: into how many removals its search is divided."""
    coarse_share: float = Field(0.3, ge=0, le=1)
    """Of `comp`: the share of what is removed that goes in whole blocks."""
    repair: Repair = "ls"
    """How the consumers of removed units are adjusted: not, by scaling, or by least squares."""
    calibration_batches: int = Field(8, ge=1, le=10_000)
    """Batches of training speech for repair and for batch-norm statistics."""
    linear_blocks: int | list[int] | Literal["all"] = "all"
    """Blocks in which `performer` has attention run in linear time: all, those of these numbers
    from 0 on, or so many, where it shifts the model's output least."""
    linear_features: int = Field(64, ge=2, le=4096, multiple_of=2)
    """Random features by which it does, an even number: more are nearer to softmax and cost more.
    64 cost less than softmax in utterances from 2 to 4 s on, by the model's size, and 128 from 7 to
    9 s on (`benchmarks/speed/crossover.py`)."""

    @field_validator("linear_blocks", mode="wrap")
    @classmethod
    def _blocks_are_blocks(
        cls, value: Any, read: Callable[[Any], Any]
    ) -> int | list[int] | Literal["all"]:
        """One line for all kinds of blocks, where each kind would have its own."""
        numbers = value if isinstance(value, list) else [value]
        are_whole = all(type(number) is int and number >= 0 for number in numbers)
        is_list = isinstance(value, list) and 0 < len(value) == len(set(map(str, value)))
        is_count = type(value) is int and value > 0
        if not (value == "all" or (are_whole and (is_list or is_count))):
            raise ValueError(
                '`pruning.linear_blocks` must be "all", a number of blocks from 1, or a list of'
                f" different blocks' numbers from 0, but is {value!r} instead"
            )
        return read(value)

    @model_validator(mode="after")
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

    @property
    def targets(self) -> dict[Resource, float]:
        """The share to remove of each resource that was asked for, the first one's first."""
        return {self.resource: self.target_sparsity, **self.also}
