"""What Ray Tune says of its trials: to the ledger first, then to whoever shows it."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray import tune

from core.config.trial import TrialConfig
from core.report import Outcome, Report
from sweep.config.sweep import ResourcesConfig
from sweep.ledger.ledger import Ledger
from sweep.ledger.records import TrialRecord
from sweep.run.background_writer import BackgroundWriter
from sweep.run.nodes import changed_program_line, lack, machines
from sweep.run.progress import Progress
from sweep.run.ray_cluster import last_words
from sweep.run.signals import SignalHandler
from sweep.run.tune_searcher import LedgerSearcher
from sweep.search import retry
from sweep.tracking.provenance import changed_sources, own_sources

MOST_LOST_WORKERS = 6
"""A trial whose worker dies so often without a step gained between is at fault itself.

Not fewer: of two workers on a bad machine one may well die three times before its first step.
"""
LOOK_SECONDS = 10.0
"""So often it is asked whether the cluster can hold a trial at all."""


class TuneCallback(tune.Callback):
    """Hears everything from Tune: to the ledger first, then to whoever shows it."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        searcher: LedgerSearcher,
        scribe: BackgroundWriter,
        progress: Progress,
        interruption: SignalHandler,
        config_of: Callable[[TrialRecord], TrialConfig],
        resources: ResourcesConfig,
        can_grow: bool,
    ) -> None:
        """`can_grow` says whether machines may join; they never join a Ray of one's own."""
        self._ledger = ledger
        self._interruption = interruption
        self._config_of = config_of
        self._searcher = searcher
        self._scribe = scribe
        self._progress = progress
        self._failures: dict[int, Mapping[str, Any]] = {}
        self._losses: Counter[int] = Counter()
        self._resources = resources
        self._can_grow = can_grow
        self._at_first = _alive()
        self._at_start: dict[int, set[str]] = {}
        self._looked_at = time.monotonic()
        self._lack: str | None = None

    def on_step_begin(self, *_: Any, **info: Any) -> None:
        self._interruption.listen()
        if time.monotonic() - self._looked_at > LOOK_SECONDS:
            self._looked_at = time.monotonic()
            self._say_what_lacks(info["trials"])

    def _say_what_lacks(self, trials: Sequence[Any]) -> None:
        """Once, when trials wait for a machine that the cluster does not have (any more)."""
        is_idle = all(trial.status == "PENDING" for trial in trials if not trial.is_finished())
        what = lack(self._resources) if is_idle else None
        if what not in (None, self._lack):
            self._progress.event(f"waiting for machines: {what}")
            if not self._can_grow and not machines():
                self._progress.event("this sweep's own Ray is gone, and none will come by itself")
                self._interruption.ask()
        self._lack = what

    def on_trial_start(self, *_: Any, **info: Any) -> None:
        record = self._ledger.start(info["trial"].config["number"])
        self._at_start[record.number] = _alive()
        self._scribe.started(record)
        self._progress.trial(record)

    def on_trial_result(self, *_: Any, **info: Any) -> None:
        number = info["trial"].config["number"]
        result = info["result"]
        if "failure" in result:
            self._failures[number] = result["failure"]
        if "report" in result:
            self._track(number, should_wait=False)
            report = Report(**result["report"])
            if report.step > self._ledger.record(number).steps:
                del self._losses[number]
            self._ledger.advance(number, report)
            self._scribe.reported(number, report)
            self._progress.report(number, report)

    def on_trial_complete(self, *_: Any, **info: Any) -> None:
        number = info["trial"].config["number"]
        self._track(number)
        told = info["trial"].last_result.get("outcomes")
        if told is None:
            steps = self._ledger.record(number).steps
            self._end(self._ledger.stop(number, f"beaten by too many at step {steps}"))
        else:
            self._end(self._ledger.finish(number, [Outcome(**values) for values in told]))

    def on_trial_error(self, *_: Any, **info: Any) -> None:
        number = info["trial"].config["number"]
        self._track(number)
        failure = self._failures.pop(number, None)
        if failure is not None:
            self._fail(number, failure)
            return
        if words := last_words():
            self._scribe.log(f"trial-{number:04}", words)
        # What was lost with its machine is no sign of a fault of its own.
        before = self._at_start.get(number, self._at_first)  # some never start
        self._losses[number] += before <= _alive()
        if self._losses[number] < MOST_LOST_WORKERS:
            self._end(self._ledger.release(number))
        else:
            line = f"Its worker died {MOST_LOST_WORKERS} times at one step; out of memory, perhaps."
            self._end(self._ledger.fail(number, line))

    def _fail(self, number: int, failure: Mapping[str, Any]) -> None:
        """Try again with what may help, or else let the trial be over."""
        self._scribe.log(f"trial-{number:04}", failure["traceback"])
        if failure["kind"] in ("cluster", "program", "disk"):  # no trial would fare better
            self._end(self._ledger.release(number))
            is_program = failure["kind"] == "program"
            changed = changed_sources(own_sources()) if is_program else []
            self._progress.event(changed_program_line(changed) if changed else failure["line"])
            self._interruption.ask()
            return
        config = self._config_of(self._ledger.record(number))
        adjustments = retry.adjust_config(failure["kind"], config, self._ledger.record(number))
        if adjustments is not None:
            said = ", ".join(f"{name} = {value:g}" for name, value in adjustments.items())
            self._progress.event(f"trial {number} again with {said}: {failure['line']}")
            self._scribe.event("adjusted", trial=number, why=failure["line"], what=adjustments)
            self._end(self._ledger.release(number, adjustments))
            return
        self._end(self._ledger.fail(number, failure["line"]))
        if failure["kind"] == "data" and retry.is_hopeless(self._ledger.records()):
            self._progress.event("the first trials all failed by the same fault of the corpus")
            self._interruption.ask()

    def _track(self, number: int, *, should_wait: bool = True) -> None:
        run_id = self._scribe.run_id(number, should_wait=should_wait)
        if run_id is not None:
            self._ledger.track(number, run_id)

    def _end(self, record: TrialRecord) -> None:
        self._searcher.ended(record)
        if record.state != "waiting":
            self._scribe.ended(record)
        self._progress.trial(record)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks, for a restore that is never asked for."""
        return {}


def _alive() -> set[str]:
    return {machine.id for machine in machines()}
