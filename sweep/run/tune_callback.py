"""Ray Tune's callbacks: each change of a trial goes to the ledger first, then to the displays."""

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
from sweep.run.nodes import machines, program_changed_error, resource_shortage
from sweep.run.progress import Progress
from sweep.run.ray_cluster import last_worker_output
from sweep.run.signals import SignalHandler
from sweep.run.tune_searcher import LedgerSearcher
from sweep.search import retry
from sweep.tracking.provenance import changed_sources, own_sources

MAX_LOST_WORKERS = 6
"""A trial whose worker dies so often without any new step between has failed.

Not fewer: of two workers on a bad machine one can die three times before its first step.
"""
CHECK_SECONDS = 10.0
"""The resources of the cluster are checked so often."""


class TuneCallback(tune.Callback):
    """Writes each change of a trial to the ledger, then to the background writer and display."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        searcher: LedgerSearcher,
        writer: BackgroundWriter,
        progress: Progress,
        signals: SignalHandler,
        config_of: Callable[[TrialRecord], TrialConfig],
        resources: ResourcesConfig,
        can_grow: bool,
    ) -> None:
        """A callback of one segment.

        Args:
            ledger: written first.
            searcher: told which trials are over.
            writer: writes MLflow, the front and the events.
            progress: the display.
            signals: asked to end the segment.
            config_of: the configuration of a trial.
            resources: of a trial.
            can_grow: whether machines may join; they never join a Ray of one's own.
        """
        self._ledger = ledger
        self._signals = signals
        self._config_of = config_of
        self._searcher = searcher
        self._writer = writer
        self._progress = progress
        self._failures: dict[int, Mapping[str, Any]] = {}
        self._losses: Counter[int] = Counter()
        self._resources = resources
        self._can_grow = can_grow
        self._at_first = _alive()
        self._at_start: dict[int, set[str]] = {}
        self._checked_at = time.monotonic()
        self._shortage: str | None = None

    def on_step_begin(self, *_: Any, **info: Any) -> None:
        """Look for a request to end, and check the cluster's resources from time to time."""
        self._signals.poll()
        if time.monotonic() - self._checked_at > CHECK_SECONDS:
            self._checked_at = time.monotonic()
            self._show_shortage(info["trials"])

    def _show_shortage(self, trials: Sequence[Any]) -> None:
        """Show once that trials wait for a machine that the cluster does not have."""
        is_idle = all(trial.status == "PENDING" for trial in trials if not trial.is_finished())
        shortage = resource_shortage(self._resources) if is_idle else None
        if shortage not in (None, self._shortage):
            self._progress.show_event(f"waiting for machines: {shortage}")
            if not self._can_grow and not machines():
                self._progress.show_event("this sweep's own Ray has ended; `resume` starts another")
                self._signals.request_stop()
        self._shortage = shortage

    def on_trial_start(self, *_: Any, **info: Any) -> None:
        record = self._ledger.start(info["trial"].config["number"])
        self._at_start[record.number] = _alive()
        self._writer.start_trial(record)
        self._progress.show_trial(record)

    def on_trial_result(self, *_: Any, **info: Any) -> None:
        number = info["trial"].config["number"]
        result = info["result"]
        if "failure" in result:
            self._failures[number] = result["failure"]
        if "report" in result:
            self._track(number, should_wait=False)
            report = Report(**result["report"])
            # Before `advance`, which raises `steps`: a step that no earlier attempt got to is
            # progress, so that losses only count in a row. Deleting what a Counter lacks is no
            # error.
            if report.step > self._ledger.record(number).steps:
                del self._losses[number]
            self._ledger.advance(number, report)
            self._writer.log_report(number, report)
            self._progress.show_report(number, report)

    def on_trial_complete(self, *_: Any, **info: Any) -> None:
        number = info["trial"].config["number"]
        self._track(number)
        # A trial that ran to its end has reported its outcomes last; one that the scheduler stopped
        # has a plain report there.
        outcomes = info["trial"].last_result.get("outcomes")
        if outcomes is None:
            steps = self._ledger.record(number).steps
            self._end(self._ledger.stop(number, f"stopped early at step {steps} (dominated)"))
        else:
            self._end(self._ledger.finish(number, [Outcome(**values) for values in outcomes]))

    def on_trial_error(self, *_: Any, **info: Any) -> None:
        number = info["trial"].config["number"]
        self._track(number)
        # A trial that fails by itself reports why. Without such a report its worker has died.
        failure = self._failures.pop(number, None)
        if failure is not None:
            self._fail(number, failure)
            return
        if output := last_worker_output():
            self._writer.log(f"trial-{number:04}", output)
        # A worker that was lost with its machine does not count against the trial.
        before = self._at_start.get(number, self._at_first)  # some never start
        # With machines {a, b} at its start: {a, b, c} alive counts, as the worker died on its own;
        # {b, c} does not, as it may have been on a.
        self._losses[number] += before <= _alive()
        if self._losses[number] < MAX_LOST_WORKERS:
            self._end(self._ledger.release(number))
        else:
            line = f"Its worker died {MAX_LOST_WORKERS} times at one step; out of memory, perhaps."
            self._end(self._ledger.fail(number, line))

    def _fail(self, number: int, failure: Mapping[str, Any]) -> None:
        """Try the trial again with other settings if that may help, else let it fail."""
        self._writer.log(f"trial-{number:04}", failure["traceback"])
        if failure["kind"] in ("cluster", "program", "disk"):  # no trial would fare better
            self._end(self._ledger.release(number))
            is_program = failure["kind"] == "program"
            changed = changed_sources(own_sources()) if is_program else []
            self._progress.show_event(
                program_changed_error(changed) if changed else failure["line"]
            )
            self._signals.request_stop()
            return
        config = self._config_of(self._ledger.record(number))
        adjustments = retry.adjust_config(failure["kind"], config, self._ledger.record(number))
        if adjustments is not None:
            values = ", ".join(f"{name} = {value:g}" for name, value in adjustments.items())
            self._progress.show_event(f"trial {number} again with {values}: {failure['line']}")
            self._writer.event("adjusted", trial=number, why=failure["line"], what=adjustments)
            self._end(self._ledger.release(number, adjustments))
            return
        self._end(self._ledger.fail(number, failure["line"]))
        if failure["kind"] == "data" and retry.is_hopeless(self._ledger.records()):
            self._progress.show_event("the first trials all failed by the same fault of the corpus")
            self._signals.request_stop()

    def _track(self, number: int, *, should_wait: bool = True) -> None:
        run_id = self._writer.run_id(number, should_wait=should_wait)
        if run_id is not None:
            self._ledger.track(number, run_id)

    def _end(self, record: TrialRecord) -> None:
        self._searcher.release(record)
        if record.state != "waiting":
            self._writer.end_trial(record)
        self._progress.show_trial(record)

    def __getstate__(self) -> dict[str, Any]:
        """Empty: Tune pickles its callbacks to restore them, which never happens."""
        return {}


def _alive() -> set[str]:
    return {machine.id for machine in machines()}
