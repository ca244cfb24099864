"""Structured OBS with sensitivity tables: pruning in minutes, without training or transcripts.

Inside an axis, units go in the order of structured OBS (Hassibi and Stork, 1993; ZipLM, arXiv
2302.04089): each removal is the one that grows the error of the refitted consumer least. Between
axes, a unit is worth the KL from the unpruned model's output distribution that its removal adds,
for its share of the resource. The KL is that of the Kronecker-factored Fisher (Martens and Grosse,
2015; LLM Surgeon, arXiv 2312.17244): one forward and one backward pass over some minutes of speech
without transcripts.

The residual width has no consumer of its own. Its units go by magnitude, and its table is measured.
"""

from core.methods.magnitude import magnitudes
from core.pruning.sensitivity import fisher_tables, measured_table, table_scores
from core.training.loop import Trainable
from core.training.method import Method, MethodContext, SearchResult

LEVELS = 8
"""Widths at which the table of the residual width is measured."""


class Obs(Method):
    needs = frozenset({"audio"})

    def search_result(self, ctx: MethodContext, search: Trainable | None) -> SearchResult:
        """Return the prices of all units, from the tables of all axes."""
        del search
        student, space = ctx.student.eval(), ctx.space
        tables = list(fisher_tables(student, space, ctx.speech, seed=ctx.config.seed))
        with_table = {table.axis.name for table in tables}
        without = [axis for axis in space.units if axis.name not in with_table]
        weights = magnitudes(student, without)
        tables += [
            measured_table(
                student,
                axis,
                weights[axis.name].argsort(stable=True),
                ctx.speech,
                levels=LEVELS,
            )
            for axis in without
        ]
        scores = table_scores(space, tables, ctx.config.pruning.resource)
        return SearchResult(scores=scores, reference={})


METHOD = Obs()
