"""Structured OBS with sensitivity tables: pruning in minutes, without training or transcripts.

Inside an axis, units go in the order of structured OBS (Hassibi and Stork, 1993; ZipLM, arXiv
2302.04089): each removal is the one that grows the error of the refitted consumer least. Between
axes, a unit is worth the KL from the unpruned model's output distribution that its removal adds,
for its share of the resource. The KL is that of the Kronecker-factored Fisher (Martens and Grosse,
2015; LLM Surgeon, arXiv 2312.17244): a few forward and backward passes over some minutes of speech
without transcripts.

The residual width is read by every module. Without a unit each reader is refitted for itself, and
their errors add up (`core/pruning/fisher_tables.py`).
"""

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Literal

from pydantic import Field

from core.config.settings import MethodSettings
from core.conformer.axes import Axis
from core.conformer.model import Conformer
from core.methods.magnitude import magnitudes
from core.pruning.calibration import Calibration, prunable_consumers
from core.pruning.fisher_tables import fisher_tables
from core.pruning.sensitivity import (
    SensitivityTable,
    closed_axis_tables,
    measured_tables,
    table_scores,
)
from core.pruning.space import Space
from core.pruning.table_files import load_tables, saved_tables, tables_digest
from core.training.loop import Trainable
from core.training.method import Method, MethodContext, SearchResult

FOLDER = "sensitivity"
"""Folder beside the teacher with the tables that trials share."""


class Settings(MethodSettings):
    """Settings of `obs`."""

    tables: Literal["fisher", "measured"] = "fisher"
    """Sensitivity tables: by the Fisher information, from one backward pass; or measured level by
    level, which takes longer and is more exact where much is removed. That of the residual width is
    always by the Fisher information."""
    levels: int = Field(8, ge=1, le=1024)
    """Numbers of removed units at which a table is measured."""


class Obs(Method):
    needs = frozenset({"audio"})
    default_repair = "sequential"

    def search_result(self, ctx: MethodContext, search: Trainable | None) -> SearchResult:
        """Return the prices of all units, from the tables of all axes."""
        del search
        tables = shared_tables(ctx, ctx.config.pruning.settings(Settings))
        resource = ctx.config.pruning.resource
        return SearchResult(scores=table_scores(ctx.space, tables, resource), reference={})


def shared_tables(ctx: MethodContext, settings: Settings) -> list[SensitivityTable]:
    """Return the tables of all axes that may lose units, from a file if a trial has left them.

    Trials of the same teacher and calibration speech share them, whatever they remove.
    """
    seed, units = ctx.config.seed, axes_with_tables(ctx.space)
    speech = list(ctx.speech)
    if ctx.shared is None:
        return list(all_tables(ctx.student, ctx.space, speech, settings, seed=seed))
    digest = tables_digest(ctx.student, speech, settings.model_dump_json(), seed=seed)
    file = ctx.shared / FOLDER / f"{digest[:16]}.safetensors"
    tables = load_tables(file, units, digest=digest)
    new = all_tables(ctx.student, ctx.space, speech, settings, seed=seed, computed=tables)
    for _ in saved_tables(new, tables, file, digest=digest):
        pass
    return [tables[axis.name] for axis in units]


def all_tables(
    model: Conformer,
    space: Space,
    speech: Calibration,
    settings: Settings,
    *,
    seed: int,
    computed: Collection[str] = (),
) -> Iterator[SensitivityTable]:
    """Yield the table of each axis that may lose units; those without a consumer come last.

    Args:
        model: the unpruned model, which is put into evaluation mode.
        space: which axes may lose units.
        speech: calibration speech, walked through several times.
        settings: the kind of tables, and the levels of those that are measured.
        seed: of the labels that are drawn.
        computed: names of axes whose tables are there already.
    """
    levels = settings.levels
    missing = tuple(a for a in axes_with_tables(space) if a.name not in computed)
    rest = replace(space, prunable=missing)
    with_consumer = {consumer.axis.name for consumer in prunable_consumers(rest)}
    measured = with_consumer if settings.tables == "measured" else set()
    by_fisher = tuple(a for a in missing if a.kind == "width" or a.name in with_consumer - measured)
    yield from fisher_tables(model, replace(space, prunable=by_fisher), speech, seed=seed)
    if measured:
        yield from measured_tables(model, rest, speech, levels=levels)
    # Whole modules, whole blocks, and units of a transducer.
    if closed := [a for a in missing if a.name not in with_consumer and a.kind != "width"]:
        orders = {n: w.argsort(stable=True) for n, w in magnitudes(model, closed).items()}
        yield from closed_axis_tables(model, orders, speech, levels=levels)


def axes_with_tables(space: Space) -> list[Axis]:
    """Return the axes that may lose units; one at its floor, such as a single channel, cannot."""
    return [axis for axis in space.units if axis.size > axis.floor]


METHOD = Obs()
