"""A family of models from one run: nested sizes that share weights and are trained together.

The sizes are `target_sparsity` and `further_targets`. In the first part of the search, gates are
trained for the smallest size, as in `l0`. How far each gate has closed gives the order of all
units. In the rest of the search all sizes that follow from this order are trained at once with the
teacher, by the sandwich rule of slimmable networks (Yu & Huang, 2019). The extracted models need no
repair, and each is fine-tuned for `tuning.steps` steps of its own.

A step on all sizes shares the computation that they have in common: `core/training/nested.py`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from core.config import TrialConfig
from core.corpora.batches import Batch
from core.methods.l0 import WarmedTarget
from core.methods.numerical import METHOD as NUMERICAL
from core.pruning.budget import Scores, budgets_of
from core.pruning_config import Repair
from core.ranks import current
from core.report import Report, Stage
from core.training.concrete import ConcreteStage
from core.training.gating import GateStage, judged_as_cut
from core.training.method import Found, Method, Workbench
from core.training.nested import Nested, absorb, tiered
from core.training.trainer import Trainable

KEYS = (
    "pruning.learning_rate",
    "pruning.gate_lr",
    "pruning.gate_travel",
    "pruning.gates",
    "pruning.start_from",
    "pruning.start_spread",
    "pruning.lambda_lr",
    "pruning.lambda_quadratic",
    "pruning.warmup_share",
    "pruning.order_share",
    "pruning.drawn_sizes",
    "pruning.log_alpha",
    "pruning.module_log_alpha",
)


class FamilyStage:
    """Gates until the order is found, then all sizes."""

    stage: Stage = "search"

    def __init__(self, bench: Workbench, targets: Sequence[float]) -> None:
        self.steps = bench.config.pruning.steps
        self._bench, self._targets = bench, sorted(set(targets))
        self._order = ordering(bench, target=max(targets))
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
        """The order is what the gates say now; the weights take in what they still let through."""
        bench, found = self._bench, self._order.found()
        absorb(bench.student, found.reference, bench.space.open_choice())
        self._begin(current().first(tiered(found.scores, self._targets, bench.choose)))

    def _begin(self, scores: Scores) -> None:
        self._scores = scores
        choices = [self._bench.choose(scores, target) for target in self._targets]
        steps = self.steps - self._order.steps
        self._nested = Nested(self._bench, choices, steps=steps)

    def found(self) -> Found:
        if self._nested is None:
            self._settle()
        return Found(scores=self._scores, reference={})

    def judged(self) -> Report:
        """Of the size that `target_sparsity` asks for; of the smallest while gates are learned."""
        if self._nested is None:
            return self._order.judged()
        return judged_as_cut(self._bench, self.found(), self.stage)

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


def ordering(bench: Workbench, *, target: float) -> GateStage:
    """Gates that learn what a size keeps, in the first share of the search."""
    pruning = bench.config.pruning
    steps = max(1, round(pruning.order_share * pruning.steps))
    also = {b.resource: 1 - b.keep for b in budgets_of(pruning, target)[1:]}
    update = {"target_sparsity": target, "also": also, "steps": steps}
    own = pruning.model_copy(update=update)
    short = replace(bench, config=bench.config.model_copy(update={"pruning": own}))
    return ConcreteStage(short, WarmedTarget(short))


class Family(Method):
    needs = frozenset({"audio", "labels"})

    def search(self, bench: Workbench) -> FamilyStage | None:
        config = bench.config
        return FamilyStage(bench, self.targets(config)) if config.pruning.steps else None

    def found(self, bench: Workbench, search: Trainable | None) -> Found:
        """Without a search nothing has learned: units go by `numerical` then."""
        return search.found() if isinstance(search, FamilyStage) else NUMERICAL.found(bench, None)

    def repair(self, config: TrialConfig) -> Repair:
        """None, once all sizes have learned: least squares would put the largest in their place."""
        return "none" if config.pruning.steps else config.pruning.repair


METHOD = Family()
