"""One segment of a sweep: start, watch, stop, reconcile.

`run` may be killed at any instant and called again, so that running and resuming are the same. The
ledger says what is left; Ray Tune places and runs it, and nothing of Tune's is ever restored.
"""

import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray import tune

from core.config import TrialConfig
from core.report import Outcome, Report
from sweep import actor, cluster
from sweep.config import SweepConfig, open_config
from sweep.ledger import FILE, Ledger, locked
from sweep.progress import Progress
from sweep.records import TrialRecord
from sweep.sampling import Sampling
from sweep.scribe import Scribe
from sweep.searcher import LedgerSearcher

DONE, SOME_FAILED, INTERRUPTED = 0, 3, 75
"""What a segment ends with; exit codes of the program."""

SIGNAL_SECONDS = 1.0
"""Signals are heard at least so often."""
MOST_LOST_WORKERS = 3
"""A trial whose worker dies so often in one segment is at fault itself."""


class SweepError(RuntimeError):
    """The sweep cannot go on; what is done is kept."""

    exit_code = SOME_FAILED


def run(folder: Path, *, address: str | None = None) -> int:
    """Run what is left of a sweep, and return the exit code.

    Args:
        folder: the sweep's directory.
        address: of the Ray cluster to join; by default one is started on this machine.

    Raises:
        ConfigError, LedgerError, LockedError, TrackingError, ClusterError: before anything runs.
        CorpusError, BundleError: if the teacher cannot be made.
        SweepError: if the sweep cannot go on.
    """
    folder = folder.resolve()
    config = open_config(folder)
    with locked(folder):
        ledger = Ledger.open(folder) if (folder / FILE).exists() else Ledger.create(folder)
        try:
            return Segment(folder, config, ledger).run(address)
        finally:
            ledger.close()


class Segment:
    """What one driver does for a sweep between its start and its end.

    Args:
        folder: the sweep's directory, absolute.
        config: the whole sweep.
        ledger: its truth; this is the only one who writes it.
    """

    def __init__(self, folder: Path, config: SweepConfig, ledger: Ledger) -> None:
        self.folder = folder
        self.config = config
        self.ledger = ledger
        self._interruption = Interruption()

    @property
    def is_complete(self) -> bool:
        """Whether every trial wanted is there and over."""
        records = self.ledger.records()
        is_over = all(record.state not in ("waiting", "running") for record in records)
        return is_over and len(records) >= self.config.sweep.trials

    def run(self, address: str | None) -> int:
        """Everything in order; SIGINT, SIGTERM and SIGUSR1 end it early and in order, too."""
        (self.folder / "logs").mkdir(exist_ok=True)
        self.ledger.reconcile()
        scribe = Scribe(self.folder, self.config, self.ledger)
        with ExitStack() as stack:
            stack.enter_context(self._interruption.heeded())
            progress = stack.enter_context(self._progress())
            scribe.open()
            try:
                if not self.is_complete:
                    progress.event(f"joining Ray at {address}" if address else "starting Ray")
                    stack.enter_context(cluster.joined(address))
                    stack.enter_context(self._interruption.heeded())
                    self._interruption.check()
                    self._make_teacher(scribe, progress)
                    self._run_trials(scribe, progress)
            except (KeyboardInterrupt, SystemExit):  # the latter is Ray's, while it starts
                pass  # the ledger says what is left
            finally:
                self.ledger.reconcile()  # what ran when the end came waits again
                if not self.is_complete:
                    progress.event("interrupted; what is done is kept")
                scribe.close(is_interrupted=not self.is_complete)
        return self._verdict()

    def _progress(self) -> Progress:
        budget = self.config.sweep
        return Progress(budget.name, budget.trials, records=self.ledger.records())

    def _verdict(self) -> int:
        if not self.is_complete:
            return INTERRUPTED
        has_failed = any(record.state == "failed" for record in self.ledger.records())
        return SOME_FAILED if has_failed else DONE

    def _make_teacher(self, scribe: Scribe, progress: Progress) -> None:
        """Corpus, features and teacher, on a worker: it may have the GPU that the driver lacks."""
        resources = self.config.resources
        cluster.check_fits(cpus=resources.cpus, gpus=resources.gpus)
        task = ray.remote(actor.prepare_shared).options(
            num_returns="streaming",
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            max_retries=0,
        )
        progress.event("preparing speech and teacher")
        try:
            reports: Any = task.remote(self._packed(0, self.config.space.base))
            for report in self._heard(reports):
                scribe.teacher(report)
                progress.teacher(report)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            self.log("teacher", str(error))
            if isinstance(cause, ValueError):
                raise cause from None  # a person's to put right, and in one line already
            raise SweepError(
                f"The teacher failed: {actor.described(cause)} (see logs/teacher.log)"
            ) from error

    def _heard(self, reports: Any) -> Iterator[Report]:
        """What a streaming task yields, while listening for signals, too."""
        while True:
            ready, _ = ray.wait([reports], timeout=SIGNAL_SECONDS)
            self._interruption.check()
            if not ready:
                continue
            try:
                yield ray.get(next(reports))
            except StopIteration:
                return

    def _run_trials(self, scribe: Scribe, progress: Progress) -> None:
        sampling = Sampling(
            self.config.space, sampler=self.config.search.sampler, budget=self.config.sweep
        )
        for record in self.ledger.records():
            sampling.observe(record)
        searcher = LedgerSearcher(
            self.ledger,
            sampling,
            trials=self.config.sweep.trials,
            concurrent=self.config.resources.concurrent,
            pack=self._packed_record,
        )
        resources = self.config.resources
        with cluster.scratch_folder() as scratch:
            tuner = tune.Tuner(
                tune.with_resources(
                    actor.run_trial, {"cpu": resources.cpus, "gpu": resources.gpus}
                ),
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    num_samples=-1,  # the searcher knows the end
                    reuse_actors=True,
                    trial_name_creator=_trial_name,
                    trial_dirname_creator=_trial_name,
                ),
                run_config=tune.RunConfig(
                    name="segment",
                    storage_path=scratch,
                    callbacks=[Watch(self, searcher, scribe, progress)],
                    verbose=0,
                ),
            )
            try:
                tuner.fit()
            finally:
                searcher.end()

    def _packed_record(self, record: TrialRecord) -> actor.Job:
        return self._packed(record.number, self.config.space.trial_config(record.params))

    def _packed(self, number: int, config: TrialConfig) -> actor.Job:
        return actor.pack(
            number,
            config,
            teacher=self.folder / "teacher",
            features=self.folder / "features",
            trial=self.folder / "trials" / f"{number:04}",
        )

    def log(self, name: str, text: str) -> None:
        with (self.folder / "logs" / f"{name}.log").open("a", encoding="utf-8") as file:
            file.write(text.rstrip() + "\n")


class Watch(tune.Callback):
    """Hears everything from Tune: to the ledger first, then to whoever shows it."""

    def __init__(
        self, segment: Segment, searcher: LedgerSearcher, scribe: Scribe, progress: Progress
    ) -> None:
        self._segment = segment
        self._ledger = segment.ledger
        self._searcher = searcher
        self._scribe = scribe
        self._progress = progress
        self._failures: dict[int, Mapping[str, str]] = {}
        self._losses: Counter[int] = Counter()

    def on_trial_start(self, *_: Any, **info: Any) -> None:
        record = self._ledger.start(info["trial"].config["number"])
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
            self._ledger.advance(number, steps=report.step, total_steps=report.total_steps)
            self._scribe.reported(number, report)
            self._progress.report(number, report)

    def on_trial_complete(self, *_: Any, **info: Any) -> None:
        number = info["trial"].config["number"]
        self._track(number)
        outcomes = [Outcome(**values) for values in info["trial"].last_result["outcomes"]]
        self._end(self._ledger.finish(number, outcomes))

    def on_trial_error(self, *_: Any, **info: Any) -> None:
        number = info["trial"].config["number"]
        self._track(number)
        failure = self._failures.pop(number, None)
        if failure is not None:
            self._segment.log(f"trial-{number:04}", failure["traceback"])
            self._end(self._ledger.fail(number, failure["line"]))
            return
        self._losses[number] += 1
        if self._losses[number] < MOST_LOST_WORKERS:
            self._end(self._ledger.release(number))
        else:
            line = f"Its worker died {MOST_LOST_WORKERS} times; out of memory, perhaps."
            self._end(self._ledger.fail(number, line))

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


def _trial_name(trial: Any) -> str:
    return f"trial-{trial.config['number']:04}-{trial.trial_id}"


class Interruption:
    """Whether an orderly end was asked for: SIGINT, SIGTERM and SIGUSR1 are one and the same.

    What a handler raises can be lost inside Ray, so it is also written down.
    """

    def __init__(self) -> None:
        self._is_asked = False

    def check(self) -> None:
        if self._is_asked:
            raise KeyboardInterrupt

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Listen; to be entered again after Ray has started, which takes SIGTERM."""
        names = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        before = [signal.signal(name, self._ask) for name in names]
        try:
            yield
        finally:
            for name, handler in zip(names, before, strict=True):
                signal.signal(name, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._is_asked = True
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)  # Tune, while it runs, makes an orderly end of it
