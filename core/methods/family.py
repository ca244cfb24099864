"""A family of models from one run: nested sizes that share weights and are trained together.

The sizes are `target_sparsity` and `further_targets`. In the first part of the search, gates are
trained for the smallest size, as in `l0`. How far each gate has closed gives the order of all
units. In the rest of the search all sizes that follow from this order are trained at once with the
teacher, by the sandwich rule of slimmable networks (Yu & Huang, 2019). The extracted models need no
repair, and each is fine-tuned for `tuning.steps` steps of its own.

A step on all sizes shares the computation that they have in common:
`core/training/nested_stage.py`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field
from torch import Tensor

from core.config.pruning import Repair
from core.config.settings import ConcreteSettings, WarmedTargetSettings
from core.config.trial import TrialConfig
from core.data.batching import Batch
from core.distributed import current
from core.methods.l0 import WarmedTarget
from core.methods.numerical import METHOD as NUMERICAL
from core.pruning.selection import Scores, budgets_of
from core.report import Report, Stage
from core.training.gate_stage import GateStage, evaluate_extracted
from core.training.hard_concrete_stage import ConcreteStage
from core.training.loop import Trainable
from core.training.method import Method, MethodContext, SearchResult
from core.training.nested_stage import Nested, absorb, nested_scores


class Settings(WarmedTargetSettings, ConcreteSettings):
    """Settings of `family`."""

    order_share: float = Field(0.25, gt=0, lt=1)
    """Share of the search in which gates find the order of the units; then all sizes learn."""
    drawn_sizes: int = Field(2, ge=0, le=16)
    """Sizes that a step draws in addition to the largest and the smallest."""


class FamilyStage:
    """Training of gates until they give the order of the units, then of all sizes."""

    stage: Stage = "search"

    def __init__(self, ctx: MethodContext, targets: Sequence[float]) -> None:
        self.steps = ctx.config.pruning.steps
        self._ctx, self._targets = ctx, sorted(set(targets))
        self._order = ordering(ctx, target=max(targets))
        self._drawn_sizes = ctx.config.pruning.settings(Settings).drawn_sizes
        self._nested: Nested | None = None
        self._scores: Scores = {}

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        if step < self._order.steps:
            return self._order.step(batch, step)
        if self._nested is None:
            self._settle()
        assert self._nested is not None
        return self._nested.step(batch, step - self._order.steps)

    def _settle(self) -> None:
        """Takes the order from the gates and multiplies the open gates into the weights.

        Example: a gate of 0.8 becomes a weight scaled by 0.8, so that the model without gates
        computes the same as with them.
        """
        ctx, result = self._ctx, self._order.search_result()
        absorb(ctx.student, result.reference, ctx.space.open_choice())
        # The first rank decides: all ranks must train the same sizes.
        self._begin(current().first(nested_scores(result.scores, self._targets, ctx.choose)))

    def _begin(self, scores: Scores) -> None:
        self._scores = scores
        choices = [self._ctx.choose(scores, target) for target in self._targets]
        steps = self.steps - self._order.steps
        self._nested = Nested(self._ctx, choices, steps=steps, drawn_sizes=self._drawn_sizes)

    def search_result(self) -> SearchResult:
        if self._nested is None:
            self._settle()
        return SearchResult(scores=self._scores, reference={})

    def evaluate(self) -> Report:
        """Reports on the size for `target_sparsity`, or on the smallest while gates learn."""
        if self._nested is None:
            return self._order.evaluate()
        return evaluate_extracted(self._ctx, self.search_result(), self.stage)

    def state(self) -> dict[str, Any]:
        if self._nested is None:
            return {"order": self._order.state()}
        return {"scores": dict(self._scores), "nested": self._nested.state()}

    def restore(self, state: dict[str, Any]) -> None:
        if "order" in state:
            self._order.restore(state["order"])
            return
        self._begin(state["scores"])
        assert self._nested is not None
        self._nested.restore(state["nested"])


def ordering(ctx: MethodContext, *, target: float) -> GateStage:
    """Returns the stage in which gates learn one size, in the first share of the search."""
    pruning = ctx.config.pruning
    steps = max(1, round(pruning.settings(Settings).order_share * pruning.steps))
    # Shares of the other resources, scaled from the config's target to the smallest size.
    also = {b.resource: 1 - b.keep for b in budgets_of(pruning, target)[1:]}
    update = {"target_sparsity": target, "also": also, "steps": steps}
    own = pruning.model_copy(update=update)
    short = replace(ctx, config=ctx.config.model_copy(update={"pruning": own}))
    return ConcreteStage(short, WarmedTarget(short))


class Family(Method):
    needs = frozenset({"audio", "labels"})

    def search(self, ctx: MethodContext) -> FamilyStage | None:
        config = ctx.config
        return FamilyStage(ctx, self.targets(config)) if config.pruning.steps else None

    def search_result(self, ctx: MethodContext, search: Trainable | None) -> SearchResult:
        """Returns the scores of the search; without a search, those of `numerical`."""
        return (
            search.search_result()
            if isinstance(search, FamilyStage)
            else NUMERICAL.search_result(ctx, None)
        )

    def repair(self, config: TrialConfig) -> Repair:
        """Returns no repair once all sizes have learned: it would fit each size to the largest."""
        return "none" if config.pruning.steps else super().repair(config)


METHOD = Family()
