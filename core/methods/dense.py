"""The control: nothing is removed, and the teacher is trained further, by as many steps as a trial.

Without this row, more training would look like better pruning.
"""

from core.config.settings import MethodSettings
from core.config.trial import TrialConfig
from core.training.loop import Trainable
from core.training.method import Method, MethodContext, SearchResult


class Settings(MethodSettings):
    """Settings of `dense`: none of its own."""

    ignores = ("pruning.further_targets",)


class Dense(Method):
    lives_by_tuning = True

    def targets(self, config: TrialConfig) -> tuple[float, ...]:
        del config
        return (0.0,)

    def search_result(self, ctx: MethodContext, search: Trainable | None) -> SearchResult:
        del ctx, search
        return SearchResult(scores={}, reference={})


METHOD = Dense()
