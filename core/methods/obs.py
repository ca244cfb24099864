"""Structured OBS with sensitivity tables: pruning in minutes, without training or transcripts.

Inside an axis, units go in the order of structured OBS (Hassibi and Stork, 1993; ZipLM, arXiv
2302.04089): each removal is the one that grows the error of the refitted consumer least. Between
axes, a unit is worth the KL from the unpruned model's output distribution that its removal adds,
for its share of the resource. The KL is that of the Kronecker-factored Fisher (Martens and Grosse,
2015; LLM Surgeon, arXiv 2312.17244): one forward and one backward pass over some minutes of speech
without transcripts.

The residual width has no consumer of its own. Its units go by magnitude, and its table is measured.
"""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from core.config.settings import MethodSettings
from core.conformer.model import Conformer
from core.methods.magnitude import magnitudes
from core.pruning.calibration import Calibration, prunable_consumers
from core.pruning.sensitivity import (
    SensitivityTable,
    fisher_tables,
    measured_table,
    measured_tables,
    table_scores,
)
from core.pruning.space import Space
from core.training.loop import Trainable
from core.training.method import Method, MethodContext, SearchResult


class Settings(MethodSettings):
    """Settings of `obs`."""

    tables: Literal["fisher", "measured"] = "fisher"
    """Sensitivity tables: by the Fisher information, from one backward pass; or measured level by
    level, which takes longer and is more exact where much is removed."""
    levels: int = Field(8, ge=1, le=1024)
    """Numbers of removed units at which a table is measured; the residual width's always is."""


class Obs(Method):
    needs = frozenset({"audio"})

    def search_result(self, ctx: MethodContext, search: Trainable | None) -> SearchResult:
        """Return the prices of all units, from the tables of all axes."""
        del search
        config = ctx.config.pruning
        settings = config.settings(Settings)
        tables = list(
            all_tables(ctx.student, ctx.space, ctx.speech, settings, seed=ctx.config.seed)
        )
        return SearchResult(scores=table_scores(ctx.space, tables, config.resource), reference={})


def all_tables(
    model: Conformer, space: Space, speech: Calibration, settings: Settings, *, seed: int
) -> Iterator[SensitivityTable]:
    """Yield the table of each axis that may lose units; those without a consumer come last.

    Args:
        model: the unpruned model, which is put into evaluation mode.
        space: which axes may lose units.
        speech: calibration speech, walked through several times.
        settings: the kind of tables, and the levels of those that are measured.
        seed: of the labels that are drawn.
    """
    if settings.tables == "fisher":
        yield from fisher_tables(model, space, speech, seed=seed)
    else:
        yield from measured_tables(model, space, speech, levels=settings.levels)
    with_consumer = {consumer.axis.name for consumer in prunable_consumers(space)}
    without = [axis for axis in space.units if axis.name not in with_consumer]
    weights = magnitudes(model, without)
    for axis in without:
        order = weights[axis.name].argsort(stable=True)
        yield measured_table(model, axis, order, speech, levels=settings.levels)


METHOD = Obs()
