"""Writes MLflow, the front's files and the list of events in a background thread.

MLflow and drawing take seconds that no trial should wait for. One thread does them in order. The
ledger is written elsewhere, before: it is the source of truth.
"""

import json
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.digests import bundle_digest, speech_lineage
from core.outside_files import read_text
from core.report import Report
from sweep.config.sweep import SweepConfig
from sweep.ledger.ledger import Ledger
from sweep.ledger.records import TrialRecord
from sweep.pareto import (
    front,
)
from sweep.pareto.compute_hours import hours
from sweep.pareto.front import Point
from sweep.report import (
    architecture_heatmap,
)
from sweep.report.architecture import read_structure
from sweep.report.architecture_heatmap import Panel
from sweep.report.front_files import teacher_wer, write_front
from sweep.tracking import (
    provenance,
)
from sweep.tracking.tracker import Tracker

if TYPE_CHECKING:
    from sweep.report.audio_page import AudioComparison

logger = logging.getLogger(__name__)

FRONT_SECONDS = 30.0
"""Least time between two drawings of the front while trials run."""
FRONT_SHARE = 0.05
"""Largest share of the time that drawing may take, however many trials there are."""
LONGEST_EVENT = 2**20
"""Bytes of a line of events.jsonl that a kill may have cut."""
RUN_SECONDS = 2.0
"""A trial's end waits so long for the id of its MLflow run; a later one is stored at the end."""


class BackgroundWriter:
    """Writes one segment. Every method but `run_id` and `close` returns at once.

    Args:
        folder: the sweep's directory.
        config: of the sweep.
        ledger: of the sweep; read only.
    """

    def __init__(self, folder: Path, config: SweepConfig, ledger: Ledger) -> None:
        self.folder = folder
        self.config = config
        self.ledger = ledger
        self.tracker = Tracker(
            folder, config.sweep.name, config.tracking.uri, artifacts=self._artifacts
        )
        _end_last_line(folder / "events.jsonl")
        self._events = (folder / "events.jsonl").open("a", encoding="utf-8")
        self._runs: dict[int, Future[str | None]] = {}
        self._num_drawn = 0
        self._has_lineage = False
        self._drawn_at = time.monotonic()
        self._draw_seconds = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="background-writer")

    def open(self) -> None:
        """Open the sweep's run, and reconcile MLflow with the ledger.

        Raises:
            TrackingError: if MLflow cannot be reached.
        """
        leaves = self.config.space.distributions
        params = {"sampler": self.config.search.sampler, "searched": ", ".join(leaves)}
        code = provenance.code()
        self.tracker.open_sweep(self.config.toml(), params, code.tags)
        self._submit(self.tracker.install_view)
        self._submit(self.tracker.log_text, "provenance/code.diff", lambda: code.diff)
        self._submit(self.tracker.log_text, "provenance/packages.txt", provenance.packages)
        self._submit(self._log_lineage)
        self._submit(self.tracker.reconcile, self.ledger.records())

    def log_teacher(self, report: Report) -> None:
        """Write a report of the teacher."""
        self.event("teacher", **_plain_values(report))
        self._submit(self.tracker.log_reports, None, [report])

    def start_trial(self, record: TrialRecord) -> None:
        """Write that a trial starts."""
        self.event("started", trial=record.number, attempt=record.attempts, params=record.params)
        self._submit(self._log_lineage)
        self._runs[record.number] = self._submit(self.tracker.open_trial, record)

    def log_report(self, number: int, report: Report) -> None:
        """Write a report of a running trial."""
        self.event("report", trial=number, **_plain_values(report))
        self._submit(self.tracker.log_reports, number, [report])

    def run_id(self, number: int, *, should_wait: bool) -> str | None:
        """The id of a trial's MLflow run; None if it is not open yet or MLflow is unreachable."""
        opening = self._runs.get(number)
        if should_wait and opening is not None and not self.tracker.is_unreachable:
            wait([opening], timeout=RUN_SECONDS)
        return self.tracker.run_id(number)

    def end_trial(self, record: TrialRecord) -> None:
        """Write that a trial is over, and draw the front if it was not drawn a short time ago."""
        outcomes = [asdict(outcome) for outcome in record.outcomes]
        self.event(record.state, trial=record.number, error=record.error, outcomes=outcomes)
        self._submit(self.tracker.finish_trial, record)
        # Drawing that took 4 s comes again after 80 s: 4 / 0.05. Up to 1.5 s it is every 30 s.
        pause = max(FRONT_SECONDS, self._draw_seconds / FRONT_SHARE)
        if time.monotonic() - self._drawn_at > pause:
            # Before it is drawn, or each trial that ends meanwhile would add another drawing.
            self._drawn_at = time.monotonic()
            self._submit(self._draw, self.ledger.records())

    def wait(self) -> None:
        """Wait until all that was submitted so far is written."""
        self._submit(lambda: None).result()

    def update_trial(self, record: TrialRecord) -> None:
        """Write that the latencies of a finished trial were measured anew."""
        outcomes = [asdict(outcome) for outcome in record.outcomes]
        self.event("latencies", trial=record.number, outcomes=outcomes)
        self._submit(self.tracker.update_latencies, record)

    def _log_lineage(self) -> None:
        """Log the speech of training and evaluation, once it is prepared."""
        speech = None if self._has_lineage else speech_lineage(self.folder / "features")
        teacher = bundle_digest(self._teacher)
        if speech is None or teacher is None:
            return
        self._has_lineage = True
        tags = {
            "corpus.digest": speech.corpus_digest,
            "tokenizer.digest": speech.tokenizer_digest,
            "teacher.digest": teacher,
            "labelled_by_teacher": ", ".join(speech.pseudo_labeled) or "none",
        }
        self.tracker.log_datasets(provenance.datasets(speech), tags)

    def _draw(
        self, records: list[TrialRecord], *, is_last: bool = False, should_listen: bool = False
    ) -> None:
        """Draw the front and log it to MLflow.

        Args:
            records: all trials.
            is_last: whether heat maps are drawn, too, which takes long.
            should_listen: whether the page has transcripts of the front's models.
        """
        resources = self.config.resources
        self.tracker.log_hours(hours(records, cpus=resources.cpus, gpus=resources.gpus))
        num_finished = sum(record.state == "finished" for record in records)
        # The last drawing has heat maps, so it is made even if no trial has finished since.
        if num_finished == (0 if is_last else self._num_drawn):
            return
        self._num_drawn = num_finished
        began = time.monotonic()
        comparison = self._compare_audio(records) if should_listen else None
        files = write_front(
            records,
            self.folder / "front",
            title=self.config.sweep.name,
            teacher_wer=teacher_wer(self.folder),
            audio=comparison,
        )
        self.tracker.log_front(files, records, self._draw_heatmaps(records) if is_last else ())
        self._draw_seconds = time.monotonic() - began

    def _compare_audio(self, records: list[TrialRecord]) -> "AudioComparison | None":
        """Transcripts of the front's models; None where that fails: the front is drawn anyway."""
        from sweep.report.audio_samples import collect_audio_samples  # noqa: PLC0415  # torch, of no use to the driver

        points = front.pareto_front(front.points(records), self.config.sweep.objectives)
        corpus, wer = self.config.space.base.corpus, teacher_wer(self.folder)
        try:
            return collect_audio_samples(self.folder, corpus, points, teacher_wer=wer)
        except (ValueError, RuntimeError) as error:  # torch raises the latter
            logger.warning("The front has no audio page: %s", error)
            return None

    def _draw_heatmaps(self, records: list[TrialRecord]) -> list[Path]:
        """Heat maps of the architectures of the front's models, in one picture."""
        points = front.pareto_front(front.points(records), self.config.sweep.objectives)
        panels = [panel for point in points if (panel := self._panel(point)) is not None]
        if not panels:
            return []
        svg, png = (self.folder / "front" / f"kept.{kind}" for kind in ("svg", "png"))
        architecture_heatmap.draw_front(panels, svg=svg, png=png)
        return [svg, png]

    def _artifacts(self, record: TrialRecord) -> dict[str, str]:
        """The report of a finished trial's model and a heat map of its architecture, by name."""
        if not record.outcomes:
            return {}
        point = Point(trial=record.number, outcome=0, result=record.outcomes[0])
        texts = {}
        with suppress(OSError, ValueError):
            texts["trial.json"] = read_text(self._bundle(point) / "report.json")
        panel = self._panel(point)
        if panel is not None:
            texts["kept.svg"] = architecture_heatmap.heatmap_svg(panel)
        return texts

    def _panel(self, point: Point) -> Panel | None:
        structure = read_structure(self._bundle(point), self._teacher)
        removed = 100 * point.result.flops_sparsity
        title = f"trial {point.name}\n{100 * point.wer:.1f} % WER, {removed:.0f} % of FLOPs gone"
        return None if structure is None else Panel(title=title, structure=structure)

    def _bundle(self, point: Point) -> Path:
        return self.folder / "trials" / f"{point.trial:04}" / point.result.model

    @property
    def _teacher(self) -> Path:
        return self.folder / "teacher" / "model"

    def event(self, kind: str, **values: Any) -> None:
        """Write a line of events.jsonl: the time, the kind of event, and its values."""
        line = {"time": round(time.time(), 3), "event": kind, **values}
        with suppress(OSError):  # a full disk stops no sweep here: the ledger is what counts
            self._events.write(json.dumps(line) + "\n")
            self._events.flush()

    def log(self, name: str, text: str) -> None:
        """Append a text that is too long to show to logs/NAME.log."""
        (self.folder / "logs").mkdir(exist_ok=True)
        with (self.folder / "logs" / f"{name}.log").open("a", encoding="utf-8") as file:
            file.write(text.rstrip() + "\n")

    def close(self, *, is_interrupted: bool) -> None:
        """Draw the front, end the sweep's run, and wait until all is written."""
        self.event("interrupted" if is_interrupted else "done")
        # Transcripts take long, and after an interruption there is no time.
        should_listen = not is_interrupted
        self._submit(self._draw, self.ledger.records(), is_last=True, should_listen=should_listen)
        self._submit(self.tracker.reconcile, self.ledger.records(), is_last=True)
        self._submit(lambda: self.tracker.close(is_interrupted=is_interrupted))
        self._thread.shutdown(wait=True)
        with suppress(OSError):
            # MLflow may have answered again only after a trial was over; its id is stored late.
            for number, run_id in self.tracker.run_ids().items():
                self.ledger.track(number, run_id)
        with suppress(OSError):
            self._events.close()

    def _submit(self, call: Callable[..., Any], *args: Any, **named: Any) -> Future[Any]:
        future = self._thread.submit(call, *args, **named)
        future.add_done_callback(_log_error)
        return future


def _end_last_line(file: Path) -> None:
    """Remove an incomplete last line, left by a kill or a full disk: the next would be joined."""
    if not file.is_file():
        return
    with file.open("r+b") as events:
        # b'{"event": "done"}\n{"ev' ends in 4 bytes too many, which are cut off. Only the tail is
        # read, as the file of a long sweep has many megabytes.
        start = max(0, events.seek(0, os.SEEK_END) - LONGEST_EVENT)
        events.seek(start)
        tail = events.read()
        if tail and not tail.endswith(b"\n"):
            events.truncate(start + tail.rfind(b"\n") + 1)


def _plain_values(report: Report) -> dict[str, Any]:
    return {name: value for name, value in asdict(report).items() if value not in (None, {})}


def _log_error(future: Future[Any]) -> None:
    error = None if future.cancelled() else future.exception()
    if error is not None:
        logger.error("Writing in the background failed; the sweep goes on: %r", error)
