"""Structured OBS with sensitivity tables: pruning in minutes, without training or transcripts.

Inside an axis, units go in the order of structured OBS (Hassibi and Stork, 1993; ZipLM, arXiv
2302.04089): each removal is the one that grows the error of the refitted consumer least. Between
axes, a unit is worth the KL from the unpruned model's output distribution that its removal adds,
for its share of the resource. The KL is that of the Kronecker-factored Fisher (Martens and Grosse,
2015; LLM Surgeon, arXiv 2312.17244): one forward and one backward pass over some minutes of speech
without transcripts.

The residual width has no consumer of its own. Its units go by magnitude, and its table is measured.
"""

from typing import Literal

from pydantic import Field

from core.config.settings import MethodSettings
from core.methods.magnitude import magnitudes
from core.pruning.sensitivity import (
    fisher_tables,
    measured_table,
    measured_tables,
    table_scores,
)
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
        student, space = ctx.student.eval(), ctx.space
        config = ctx.config.pruning
        settings = config.settings(Settings)
        if settings.tables == "fisher":
            tables = list(fisher_tables(student, space, ctx.speech, seed=ctx.config.seed))
        else:
            tables = list(measured_tables(student, space, ctx.speech, levels=settings.levels))
        with_table = {table.axis.name for table in tables}
        without = [axis for axis in space.units if axis.name not in with_table]
        weights = magnitudes(student, without)
        for axis in without:
            order = weights[axis.name].argsort(stable=True)
            tables.append(measured_table(student, axis, order, ctx.speech, levels=settings.levels))
        return SearchResult(scores=table_scores(space, tables, config.resource), reference={})


METHOD = Obs()
