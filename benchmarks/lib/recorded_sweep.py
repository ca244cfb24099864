"""A sweep of very many trials, made in minutes: a few are run, the others are made up.

All are in the real storages: the ledger is written by `Ledger`, trial by trial; MLflow's database,
whose runs take a tenth of a second each, gets copies of the runs of the trials that were run.
"""

import math
import random
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from benchmarks.lib.tiny_spaces import RECORDED
from core.report import Outcome
from sweep.config.sweep import create, open_config, parse, rewrite
from sweep.ledger.ledger import Ledger
from sweep.ledger.records import CurvePoint, TrialRecord
from sweep.run import driver
from tests.support.made_outcomes import make_records

EVALUATIONS = 7
"""Points of a made-up trial's curve."""


def make(folder: Path, count: int) -> None:
    """Make a finished sweep of so many trials."""
    create(folder, parse(RECORDED, source="many"), RECORDED)
    if driver.run(folder) != driver.DONE:
        raise SystemExit(f"the first trials did not end well; see {folder}")
    grow(folder, count)


def grow(folder: Path, count: int, *, should_copy_runs: bool = True) -> None:
    """Add made-up finished trials until there are so many."""
    config = open_config(folder)
    ledger = Ledger.open(folder)
    real = [record.outcomes[0] for record in ledger.records() if record.outcomes]
    before = len(ledger)
    for made in make_records(count)[before:]:
        leaves = config.space.distributions
        drawn = {k: v for k, v in made.params.items() if k in leaves}
        params = {k: v if leaves[k].holds(v) else leaves[k].at(0.5) for k, v in drawn.items()}
        number = ledger.add(params, leaves).number
        whole = replace(made, mlflow_run_id=uuid.uuid4().hex, curve=tuple(_curve(made)))
        # What a real one gathers while it runs: `finish` writes it with the outcome.
        ledger._records[number] = replace(  # noqa: SLF001
            whole, number=number, state="waiting", params=params
        )
        ledger.finish(number, [_judged(made.outcomes[0], real[-1] if real else made.outcomes[0])])
    records = ledger.records()
    ledger.close()
    if should_copy_runs:
        copy_runs(folder / "mlflow.db", records, before)
    rewrite(folder, config.with_budget(trials=count))


def copy_runs(database: Path, records: list[TrialRecord], before: int) -> None:
    """Give every trial from `before` on an MLflow run: a copy of the last real one's."""
    template = records[before - 1].mlflow_run_id
    tables = ("runs", "tags", "params", "metrics", "latest_metrics")
    with closing(sqlite3.connect(database)) as connection, connection:
        for table in tables:
            found = connection.execute(f"SELECT * FROM {table} WHERE run_uuid = ?", (template,))  # noqa: S608
            names = [column[0] for column in found.description]
            rows = [dict(zip(names, row, strict=True)) for row in found.fetchall()]
            places = ", ".join("?" * len(names))
            connection.executemany(
                f"INSERT INTO {table} VALUES ({places})",  # noqa: S608
                (
                    tuple(_copied(row, record, str(template)).values())
                    for record in records[before:]
                    for row in rows
                ),
            )


def _copied(row: dict[str, object], record: TrialRecord, template: str) -> dict[str, object]:
    told = {
        key: value.replace(template, str(record.mlflow_run_id)) if isinstance(value, str) else value
        for key, value in row.items()
    }
    if row.get("key") == "sweep.trial":
        told["value"] = str(record.number)
    return told


def _judged(made: Outcome, real: Outcome) -> Outcome:
    """The made-up outcome on the scale of the real ones, so that all are of one model."""
    gflops = real.gflops / (1 - real.flops_sparsity) * (1 - made.flops_sparsity)
    return replace(made, gflops=gflops, steps=real.steps)


def _curve(record: TrialRecord) -> Iterator[CurvePoint]:
    """From all wrong down to the outcome, as learning goes; FLOPs fall as the target warms up."""
    chance, outcome = random.Random(record.number), record.outcomes[0]  # noqa: S311
    for place in range(1, EVALUATIONS + 1):
        share = place / EVALUATIONS
        excess = math.exp(-5 * share) * (1 + 0.2 * chance.random())
        gflops = outcome.gflops * (1 + max(0.0, 0.6 - share))
        yield CurvePoint(
            step=100 * place, wer=outcome.wer + (1 - outcome.wer) * excess, gflops=gflops
        )
