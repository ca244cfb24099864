"""Writes what people read: MLflow, the front's files and the list of events.

MLflow and drawing take seconds that no trial should wait for, so they happen in one thread, in
order, beside the driver. The ledger does not pass here: it is written first, and is the truth.
"""

import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.report import Report
from sweep.config import SweepConfig
from sweep.figures import teacher_wer, write_front
from sweep.ledger import Ledger
from sweep.records import TrialRecord
from sweep.tracking import Tracker

logger = logging.getLogger(__name__)

FRONT_SECONDS = 30.0
"""The front is drawn again at most so often while trials run."""
FRONT_SHARE = 0.05
"""Nor may drawing take more of the time than this, however many trials there are."""


class Scribe:
    """One segment's pen. Everything but `run_id` and `close` returns at once."""

    def __init__(self, folder: Path, config: SweepConfig, ledger: Ledger) -> None:
        self.folder = folder
        self.config = config
        self.ledger = ledger
        self.tracker = Tracker(folder, config.sweep.name, config.tracking.uri)
        self._events = (folder / "events.jsonl").open("a", encoding="utf-8")
        self._runs: dict[int, Future[str | None]] = {}
        self._num_drawn = 0
        self._drawn_at = time.monotonic()
        self._draw_seconds = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scribe")

    def open(self) -> None:
        """Open the sweep's run, and put right what a killed driver left in MLflow.

        Raises:
            TrackingError: if MLflow cannot be reached.
        """
        leaves = self.config.space.distributions
        params = {"sampler": self.config.search.sampler, "searched": ", ".join(leaves)}
        self.tracker.open_sweep(self.config.toml(), params)
        self._submit(self.tracker.install_view)
        self._submit(self.tracker.reconcile, self.ledger.records())

    def teacher(self, report: Report) -> None:
        self.event("teacher", **_plain(report))
        self._submit(self.tracker.log_reports, self.tracker.parent, [report])

    def started(self, record: TrialRecord) -> None:
        self.event("started", trial=record.number, attempt=record.attempts, params=record.params)
        self._runs[record.number] = self._submit(self.tracker.open_trial, record)

    def reported(self, number: int, report: Report) -> None:
        self.event("report", trial=number, **_plain(report))
        self._submit(lambda: self.tracker.log_reports(self._runs[number].result(), [report]))

    def run_id(self, number: int, *, should_wait: bool) -> str | None:
        """MLflow's run of a trial; None if it is not known (yet), or MLflow is away."""
        run = self._runs.get(number)
        if run is None or not (should_wait or run.done()) or run.exception() is not None:
            return None
        return run.result()

    def ended(self, record: TrialRecord) -> None:
        outcomes = [asdict(outcome) for outcome in record.outcomes]
        self.event(record.state, trial=record.number, error=record.error, outcomes=outcomes)
        self._submit(self.tracker.finish_trial, record)
        pause = max(FRONT_SECONDS, self._draw_seconds / FRONT_SHARE)
        if time.monotonic() - self._drawn_at > pause:
            self._drawn_at = time.monotonic()
            self._submit(self._draw, self.ledger.records())

    def _draw(self, records: list[TrialRecord]) -> None:
        """Draw the front as it stood, and show it in MLflow."""
        num_finished = sum(record.state == "finished" for record in records)
        if num_finished == self._num_drawn:
            return
        self._num_drawn = num_finished
        began = time.monotonic()
        files = write_front(
            records,
            self.folder / "front",
            title=self.config.sweep.name,
            teacher_wer=teacher_wer(self.folder),
        )
        self.tracker.log_front(files, records)
        self._draw_seconds = time.monotonic() - began

    def event(self, kind: str, **values: Any) -> None:
        """One line of events.jsonl: what happened, and when."""
        line = {"time": round(time.time(), 3), "event": kind, **values}
        self._events.write(json.dumps(line) + "\n")
        self._events.flush()

    def log(self, name: str, text: str) -> None:
        """Keep what is too long to show, in logs/NAME.log."""
        (self.folder / "logs").mkdir(exist_ok=True)
        with (self.folder / "logs" / f"{name}.log").open("a", encoding="utf-8") as file:
            file.write(text.rstrip() + "\n")

    def close(self, *, is_interrupted: bool) -> None:
        """Draw the front, end the sweep's run, and wait until all is written."""
        self.event("interrupted" if is_interrupted else "done")
        self._submit(self._draw, self.ledger.records())
        self._submit(lambda: self.tracker.close(is_interrupted=is_interrupted))
        self._thread.shutdown(wait=True)
        self._events.close()

    def _submit(self, call: Callable[..., Any], *args: Any) -> Future[Any]:
        future = self._thread.submit(call, *args)
        future.add_done_callback(_complain)
        return future


def _plain(report: Report) -> dict[str, Any]:
    return {name: value for name, value in asdict(report).items() if value not in (None, {})}


def _complain(future: Future[Any]) -> None:
    error = None if future.cancelled() else future.exception()
    if error is not None:
        logger.error("The sweep goes on, but a note was not taken: %r", error)
