"""One segment of a sweep: start, run, stop, reconcile.

`run` may be killed at any instant and called again, so that running and resuming are the same. The
ledger holds the trials that remain; Ray Tune runs them, and no state of Tune's is ever restored.
"""

import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray
from ray import tune

from core.config.trial import TrialConfig
from core.files import remove_leftovers
from core.report import Report
from sweep.config.consent import check_consent
from sweep.config.diff import changes, check
from sweep.config.sweep import SHARED_FOLDERS, SweepConfig, open_config, parse
from sweep.ledger.ledger import Ledger
from sweep.ledger.records import TrialRecord
from sweep.run import nodes, ray_cluster, worker
from sweep.run.background_writer import BackgroundWriter
from sweep.run.idle_latencies import measure_latencies, unmeasured
from sweep.run.progress import Progress
from sweep.run.signals import SIGNAL_SECONDS, SignalHandler
from sweep.run.tune_callback import TuneCallback
from sweep.run.tune_scheduler import FrontScheduler
from sweep.run.tune_searcher import LedgerSearcher
from sweep.search.budget import reached_limit
from sweep.search.early_stopping import Stopping, first_step
from sweep.search.sampler import Sampling
from sweep.search.warm_start import warm_start_records
from sweep.storage.addresses import address_of
from sweep.storage.checkpoints import RemoteState, params_digest
from sweep.storage.lock import clear_stop, sweep_lock
from sweep.tracking.provenance import code_version

DONE, SOME_FAILED, INTERRUPTED = 0, 3, 75
"""Results of a segment; exit codes of the program."""
MAX_BREAKS = 3
"""A segment starts again so often when Tune fails."""


class SweepError(RuntimeError):
    """The sweep cannot go on; finished trials are stored."""

    exit_code = SOME_FAILED


def run(folder: Path, *, address: str | None = None, should_retry: bool = False) -> int:
    """Run the remaining trials of a sweep, and return the exit code.

    Args:
        folder: the sweep's directory.
        address: of the Ray cluster to join; by default one is started on this machine.
        should_retry: whether failed trials are tried again, too.

    Raises:
        ConfigError, LedgerError, LockedError, TrackingError, ClusterError: before anything runs.
        CorpusError, BundleError: if the teacher cannot be prepared.
        SweepError: if the sweep cannot go on.
    """
    folder = folder.resolve()
    config = open_config(folder)
    with sweep_lock(folder):
        config = open_config(folder)  # a working copy's was fetched with the lock
        check_consent(folder, config)
        clear_stop(folder)
        for name in ("front", *SHARED_FOLDERS):
            remove_leftovers(folder / name, is_recursive=True)
        remove_leftovers(folder)
        ledger = Ledger.open_or_create(folder, config.sweep.objectives, kind=config.sweep.ledger)
        try:
            segment = Segment(folder, config, ledger)
            return segment.run(address, should_retry=should_retry)
        finally:
            ledger.close()


class Segment:
    """The work of one driver for a sweep, from its start to its end.

    Args:
        folder: the sweep's directory, absolute.
        config: of the whole sweep.
        ledger: of the sweep, opened to be written.
    """

    def __init__(self, folder: Path, config: SweepConfig, ledger: Ledger) -> None:
        self.folder = folder
        self.config = config
        self.ledger = ledger
        self.signals = SignalHandler(folder)

    @property
    def is_complete(self) -> bool:
        """Whether all trials of the sweep exist and are over."""
        records = self.ledger.records()
        # 6 of 6 trials over with `trials = 10`: not complete, as four are still to be proposed. 10
        # of 10 with one that waits: not complete either, though the limit is reached.
        is_over = all(record.is_over for record in records)
        return is_over and reached_limit(records, self.config) is not None

    def run(self, address: str | None, *, should_retry: bool) -> int:
        """Run the segment; SIGINT, SIGTERM and SIGUSR1 end it early and in order."""
        changed = self._check_changes()
        # The lock is held, so a trial that the ledger calls running was left by a killed driver.
        self.ledger.reconcile()
        failed = [r.number for r in self.ledger.records() if r.state == "failed"]
        for number in failed if should_retry else ():
            self.ledger.retry(number)
        writer = BackgroundWriter(self.folder, self.config, self.ledger)
        with ExitStack() as stack:
            stack.enter_context(self.signals.install())
            progress = stack.enter_context(self._progress())
            writer.open()
            for change in changed:
                writer.event("changed", what=change)
                progress.show_event(f"changed since the last run: {change}")
            try:
                if not self.is_complete:
                    progress.show_event(f"joining Ray at {address}" if address else "starting Ray")
                    # What opens last closes first: Ray ends while the display and the handlers are
                    # still there.
                    stack.enter_context(ray_cluster.connect(address))
                    stack.enter_context(self.signals.install())
                    self.signals.check()
                    self._check_machines(address, progress)
                    self._make_teacher(writer, progress)
                    self._run_trials_to_the_end(writer, progress, can_grow=bool(address))
                self._measure_latencies(writer, progress, is_local=not address)
            except (KeyboardInterrupt, SystemExit):  # the latter is Ray's, while it starts
                pass  # the ledger holds the trials that remain
            finally:
                self.ledger.reconcile()  # what ran when the end came waits again
                if not self.is_complete:
                    progress.show_event("interrupted; `resume` goes on from here")
                writer.close(is_interrupted=not self.is_complete)
        return self._verdict()

    def _check_changes(self) -> list[str]:
        """Store this segment's config and program; returns what changed since the last one.

        Raises:
            ConfigError: if something changed that must not, naming it.
        """
        before, code = self.ledger.attribute("config"), self.ledger.attribute("code")
        now, code_now = self.config.toml(), code_version()
        differences = changes(parse(before, source="the ledger"), self.config) if before else []
        check(differences)
        lines = [str(change) for change in differences]
        if code not in (None, code_now):
            lines.append(f"the program: {code} -> {code_now}")
        if before != now:
            self.ledger.set_attribute("config", now)
        if code != code_now:
            self.ledger.set_attribute("code", code_now)
        return lines

    def _progress(self) -> Progress:
        budget = self.config.sweep
        records = self.ledger.records()
        return Progress(budget.name, self.config.num_trials, records=records, hours=budget.hours)

    def _verdict(self) -> int:
        if not self.is_complete:
            return INTERRUPTED
        has_failed = any(record.state == "failed" for record in self.ledger.records())
        return SOME_FAILED if has_failed else DONE

    def _check_machines(self, address: str | None, progress: Progress) -> None:
        """Refuse machines that cannot run a trial; a cluster with too few of them may grow."""
        shortage = nodes.resource_shortage(self.config.resources)
        if shortage and not address:
            raise ray_cluster.ClusterError(shortage)
        if address:
            # With an object store each machine has a working copy of its own, so none is shared to
            # check.
            nodes.check_machines(None if address_of(self.folder) else self.folder)
        if shortage:
            progress.show_event(f"waiting for machines: {shortage}")

    def _make_teacher(self, writer: BackgroundWriter, progress: Progress) -> None:
        """Prepare corpus, features and teacher on a worker, which may have a GPU."""
        resources = self.config.resources
        task = ray.remote(worker.prepare_shared).options(
            num_returns="streaming",
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            label_selector=nodes.label_selector(resources),
            max_retries=0,
        )
        progress.show_event("preparing speech and teacher")
        # 3, 2, 1, 0: four attempts. Ray's own retry is off, as it would start again without a word.
        for remaining in reversed(range(MAX_BREAKS + 1)):
            try:
                reports: Any = task.remote(self._make_job(0, self.config.space.shared))
                for report in self._reports_until_stop(reports):
                    writer.log_teacher(report)
                    progress.show_teacher(report)
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                writer.log("teacher", str(error))
                # A fault of the user's data fails again each time; only a lost worker is worth an
                # attempt.
                if isinstance(cause, ValueError) or worker.error_kind(cause) == "disk":
                    raise cause from None  # the user's to repair, and in one line already
                raise SweepError(
                    f"The teacher failed: {worker.describe_error(cause)} (see logs/teacher.log)"
                ) from error
            except ray.exceptions.RayError as error:
                line = worker.describe_error(error)
                if not remaining:
                    raise SweepError(
                        f"The teacher's worker died again and again: {line}"
                    ) from error
                progress.show_event(
                    f"the teacher's worker was lost; going on from its checkpoint: {line}"
                )
            else:
                return

    def _reports_until_stop(self, reports: Any) -> Iterator[Report]:
        """The reports of a streaming task, until an orderly end is requested."""
        while True:
            # `next` alone would block for the minutes of a step or an evaluation, and a request to
            # stop would wait as long: Ray takes the exception of a handler, and the file needs to
            # be polled.
            ready, _ = ray.wait([reports], timeout=SIGNAL_SECONDS)
            self.signals.poll()
            # An interrupt can surface as an error of Ray's: then it is an orderly end, not a break.
            self.signals.check()
            if not ready:
                continue
            try:
                yield ray.get(next(reports))
            # Left uncaught inside a generator, Python would turn it into a RuntimeError (PEP 479).
            except StopIteration:
                return

    def _run_trials_to_the_end(
        self, writer: BackgroundWriter, progress: Progress, *, can_grow: bool
    ) -> None:
        """Run the trials; if Tune itself fails, continue from the ledger."""
        for remaining in reversed(range(MAX_BREAKS + 1)):
            try:
                self._run_trials(writer, progress, can_grow=can_grow)
            except (ray.exceptions.RayError, tune.TuneError, RuntimeError) as error:
                writer.log("driver", traceback.format_exc())
                self.signals.check()
                line = worker.describe_error(error)
                if not remaining:
                    raise SweepError(
                        f"Ray broke again and again: {line} (see logs/driver.log)"
                    ) from error
                progress.show_event(f"Ray broke; going on from the ledger: {line}")
                writer.event("broke", why=line)
                self.ledger.reconcile()
            else:
                return

    def _measure_latencies(
        self, writer: BackgroundWriter, progress: Progress, *, is_local: bool
    ) -> None:
        """Measure the latencies of all models again, on this machine, where no trial runs now.

        On a cluster the driver's machine may be no worker's: latencies stay as workers saw them.
        """
        is_due = self.is_complete and is_local
        remaining = unmeasured(self.ledger.records()) if is_due else []
        if remaining:
            progress.show_event("measuring latencies, as no trial runs any more")
            writer.wait()  # drawing a front takes a core
        for number, outcomes in measure_latencies(self.folder, remaining, self._config_of):
            self.signals.check()
            writer.update_trial(self.ledger.update_latencies(number, outcomes))

    def _run_trials(self, writer: BackgroundWriter, progress: Progress, *, can_grow: bool) -> None:
        sampling = Sampling(self.config.space, search=self.config.search, budget=self.config.sweep)
        # The sampler's memory is rebuilt from the records each time, so a break of Ray loses none
        # of it.
        for record in (*warm_start_records(self.folder), *self.ledger.records()):
            sampling.observe(record)
        searcher = LedgerSearcher(
            self.ledger,
            sampling,
            config=self.config,
            concurrent=self.config.resources.concurrent,
            pack=self._record_job,
        )
        with ray_cluster.scratch_folder() as scratch:
            tuner = tune.Tuner(
                # A reused worker saves its start: 24 trials of 0.9 s, two at a time, took 15 s with
                # `reuse_actors` and 69 s without.
                tune.with_resources(
                    worker.run_trial, nodes.placement_request(self.config.resources)
                ),
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=self._scheduler(),
                    num_samples=-1,  # the searcher knows the end
                    reuse_actors=True,
                    trial_name_creator=_trial_name,
                    trial_dirname_creator=_trial_name,
                ),
                run_config=tune.RunConfig(
                    name="segment",
                    storage_path=scratch,
                    callbacks=[
                        TuneCallback(
                            ledger=self.ledger,
                            searcher=searcher,
                            writer=writer,
                            progress=progress,
                            signals=self.signals,
                            config_of=self._config_of,
                            resources=self.config.resources,
                            can_grow=can_grow,
                        )
                    ],
                    verbose=0,
                ),
            )
            try:
                tuner.fit()
            finally:
                searcher.end()

    def _scheduler(self) -> FrontScheduler | None:
        """The scheduler of early stopping; None is Tune's own, which stops no trial."""
        rule, space = self.config.early_stopping, self.config.space
        if rule.kind == "none":
            return None
        stopping = Stopping(
            kind=rule.kind,
            # The rung is one for all methods, so it lies after the longest warm-up of the target:
            # until then a trial with a low target looks better only because less has been closed.
            first=max(first_step(config) for config in space.config_of_each_method()),
            keep=rule.keep,
            growth=rule.growth,
            strata=rule.strata,
        )
        return FrontScheduler(stopping, self.ledger, space)

    def _record_job(self, record: TrialRecord) -> worker.Job:
        digest, config = params_digest(record.params), self._config_of(record)
        return self._make_job(record.number, config, digest=digest, reported_step=record.steps)

    def _config_of(self, record: TrialRecord) -> TrialConfig:
        return self.config.space.trial_config(record.settings)

    def _make_job(
        self, number: int, config: TrialConfig, *, digest: str = "", reported_step: int = 0
    ) -> worker.Job:
        """A job for a worker.

        Args:
            number: the trial's.
            config: the trial's.
            digest: of the trial's parameters.
            reported_step: reports up to this step are in the ledger.
        """
        address = address_of(self.folder)
        return worker.make_job(
            number,
            config,
            teacher=self.folder / "teacher",
            features=self.folder / "features",
            trial=self.folder / "trials" / f"{number:04}",
            ranks=self.config.resources.ranks,
            reported_step=reported_step,
            remote_state=RemoteState(address=address, digest=digest) if address else None,
        )


def _trial_name(trial: Any) -> str:
    # The number alone does not do: a trial whose worker was lost comes back as another one of
    # Tune's.
    return f"trial-{trial.config['number']:04}-{trial.trial_id}"
