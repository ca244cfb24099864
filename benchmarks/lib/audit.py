"""What became of a sweep that was hurt, against one of the same seed that nobody hurt."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from core.report import LATENCY_FIELDS
from sweep.identity import identity
from sweep.ledger.ledger import Ledger
from sweep.ledger.records import TrialRecord

ON_THE_CLOCK = LATENCY_FIELDS
"""What of an outcome is measured in seconds, and so never twice the same."""


@dataclass(kw_only=True, slots=True)
class Faults:
    """What must not be, counted over the trials of sweeps."""

    lost: int = 0
    """Trials that did not end finished, and reports that MLflow never saw."""
    duplicated: int = 0
    """Trials that ended more than once, and runs of a trial beside its first."""
    left_running: int = 0
    """MLflow runs that still wait for an end."""
    unordered: int = 0
    """Runs whose steps do not rise."""
    different: int = 0
    """Trials whose outcome is not that of the unbroken sweep."""
    late: int = 0
    """Attempts that began more than a checkpoint interval before what was reported."""

    def __add__(self, other: "Faults") -> "Faults":
        return Faults(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in FAULTS})


FAULTS = fields(Faults)


def audited(folder: Path, unbroken: Path, *, uri: str, interval: int) -> Faults:
    """What went wrong in a sweep that was hurt.

    Args:
        folder: its directory.
        unbroken: the directory of the sweep that it should equal.
        uri: where MLflow keeps its runs.
        interval: steps between its checkpoints.
    """
    records, wanted = recorded(folder), recorded(unbroken)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    ends = Counter(e["trial"] for e in events if e["event"] in ("finished", "failed", "stopped"))
    faults = Faults(
        lost=sum(record.state != "finished" for record in records)
        + abs(len(records) - len(wanted)),
        duplicated=sum(count - 1 for count in ends.values()),
        different=sum(
            told(one) != told(other) for one, other in zip(records, wanted, strict=False)
        ),
        late=sum(late_attempts(each, interval) for each in by_trial(events).values()),
    )
    return faults + tracked(folder, records, uri)


def recorded(folder: Path) -> list[TrialRecord]:
    ledger = Ledger.open(folder)
    ledger.close()
    return ledger.records()


def told(record: TrialRecord) -> list[dict[str, Any]]:
    """The whole curve and the outcomes, without what hangs on the clock."""
    outcomes = [
        {name: value for name, value in asdict(outcome).items() if name not in ON_THE_CLOCK}
        for outcome in record.outcomes
    ]
    return [*(heard._asdict() for heard in record.curve), *outcomes]


def by_trial(events: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for event in events:
        if event["event"] in ("started", "report"):
            found.setdefault(event["trial"], []).append(event)
    return found


def late_attempts(events: list[dict[str, Any]], interval: int) -> int:
    """Attempts whose first report repeats more than the last checkpoint interval."""
    most = late = 0
    is_first = False
    for event in events:
        if event["event"] == "started":
            is_first = True
            continue
        late += is_first and event["step"] <= most - interval
        is_first, most = False, max(most, event["step"])
    return late


def tracked(folder: Path, records: list[TrialRecord], uri: str) -> Faults:
    """What MLflow says of the sweep's trials, against what it should."""
    client = MlflowClient(uri)
    experiments = [each.experiment_id for each in client.search_experiments()]
    query = f"tags.`sweep.id` = '{identity(folder)}'"
    runs = list(client.search_runs(experiments, query, max_results=1000))
    faults = Faults(left_running=sum(run.info.status != "FINISHED" for run in runs))
    numbers = Counter(run.data.tags.get("sweep.trial", "parent") for run in runs)
    faults.duplicated = sum(count - 1 for count in numbers.values())
    faults.lost = len({"parent", *(str(record.number) for record in records)} - set(numbers))
    for run in runs:
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "val/wer")]
        faults.unordered += steps != sorted(set(steps))
        if "sweep.trial" in run.data.tags:
            curve = [heard.step for heard in records[int(run.data.tags["sweep.trial"])].curve]
            faults.lost += len(set(curve) - set(steps))
    return faults
