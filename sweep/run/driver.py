"""One segment of a sweep: start, watch, stop, reconcile.

`run` may be killed at any instant and called again, so that running and resuming are the same. The
ledger says what is left; Ray Tune places and runs it, and nothing of Tune's is ever restored.
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
"""What a segment ends with; exit codes of the program."""
MOST_BREAKS = 3
"""So often a segment begins anew when Tune breaks."""


class SweepError(RuntimeError):
    """The sweep cannot go on; what is done is kept."""

    exit_code = SOME_FAILED


def run(folder: Path, *, address: str | None = None, should_retry: bool = False) -> int:
    """Run what is left of a sweep, and return the exit code.

    Args:
        folder: the sweep's directory.
        address: of the Ray cluster to join; by default one is started on this machine.
        should_retry: whether failed trials are tried again, too.

    Raises:
        ConfigError, LedgerError, LockedError, TrackingError, ClusterError: before anything runs.
        CorpusError, BundleError: if the teacher cannot be made.
        SweepError: if the sweep cannot go on.
    """
    folder = folder.resolve()
    config = open_config(folder)
    with sweep_lock(folder):
        config = open_config(folder)  # of a store's directory it may have come only now
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
        self.interruption = SignalHandler(folder)

    @property
    def is_complete(self) -> bool:
        """Whether every trial wanted is there and over."""
        records = self.ledger.records()
        is_over = all(record.is_over for record in records)
        return is_over and reached_limit(records, self.config) is not None

    def run(self, address: str | None, *, should_retry: bool) -> int:
        """Everything in order; SIGINT, SIGTERM and SIGUSR1 end it early and in order, too."""
        changed = self._admitted()
        self.ledger.reconcile()
        failed = [r.number for r in self.ledger.records() if r.state == "failed"]
        for number in failed if should_retry else ():
            self.ledger.retry(number)
        scribe = BackgroundWriter(self.folder, self.config, self.ledger)
        with ExitStack() as stack:
            stack.enter_context(self.interruption.install())
            progress = stack.enter_context(self._progress())
            scribe.open()
            for change in changed:
                scribe.event("changed", what=change)
                progress.event(f"changed since the last run: {change}")
            try:
                if not self.is_complete:
                    progress.event(f"joining Ray at {address}" if address else "starting Ray")
                    stack.enter_context(ray_cluster.connected(address))
                    stack.enter_context(self.interruption.install())
                    self.interruption.check()
                    self._look_at_machines(address, progress)
                    self._make_teacher(scribe, progress)
                    self._run_trials_to_the_end(scribe, progress, can_grow=bool(address))
            except (KeyboardInterrupt, SystemExit):  # the latter is Ray's, while it starts
                pass  # the ledger says what is left
            finally:
                self.ledger.reconcile()  # what ran when the end came waits again
                if not self.is_complete:
                    progress.event("interrupted; what is done is kept")
                scribe.close(is_interrupted=not self.is_complete)
        return self._verdict()

    def _admitted(self) -> list[str]:
        """What changed since the last segment, in words; what must not is refused.

        Raises:
            ConfigError: if the sweep was begun with another config, naming where it differs.
        """
        before, code = self.ledger.noted("config"), self.ledger.noted("code")
        now, code_now = self.config.toml(), code_version()
        found = changes(parse(before, source="the ledger"), self.config) if before else []
        check(found)
        said = [str(change) for change in found]
        if code not in (None, code_now):
            said.append(f"the program: {code} -> {code_now}")
        if before != now:
            self.ledger.note("config", now)
        if code != code_now:
            self.ledger.note("code", code_now)
        return said

    def _progress(self) -> Progress:
        budget = self.config.sweep
        known = self.ledger.records()
        return Progress(budget.name, self.config.num_trials, records=known, hours=budget.hours)

    def _verdict(self) -> int:
        if not self.is_complete:
            return INTERRUPTED
        has_failed = any(record.state == "failed" for record in self.ledger.records())
        return SOME_FAILED if has_failed else DONE

    def _look_at_machines(self, address: str | None, progress: Progress) -> None:
        """Refuse machines that cannot run this; of more, a cluster may yet get some."""
        lack = nodes.lack(self.config.resources)
        if lack and not address:
            raise ray_cluster.ClusterError(lack)
        if address:
            nodes.examine(None if address_of(self.folder) else self.folder)
        if lack:
            progress.event(f"waiting for machines: {lack}")

    def _make_teacher(self, scribe: BackgroundWriter, progress: Progress) -> None:
        """Corpus, features and teacher, on a worker: it may have the GPU that the driver lacks."""
        resources = self.config.resources
        task = ray.remote(worker.prepare_shared).options(
            num_returns="streaming",
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            label_selector=nodes.selector(resources),
            max_retries=0,
        )
        progress.event("preparing speech and teacher")
        for remaining in reversed(range(MOST_BREAKS + 1)):
            try:
                reports: Any = task.remote(self._packed(0, self.config.space.shared))
                for report in self._heard(reports):
                    scribe.teacher(report)
                    progress.teacher(report)
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                scribe.log("teacher", str(error))
                if isinstance(cause, ValueError) or worker.kind_of(cause) == "disk":
                    raise cause from None  # a person's to put right, and in one line already
                raise SweepError(
                    f"The teacher failed: {worker.describe_error(cause)} (see logs/teacher.log)"
                ) from error
            except ray.exceptions.RayError as error:
                line = worker.describe_error(error)
                if not remaining:
                    raise SweepError(
                        f"The teacher's worker died again and again: {line}"
                    ) from error
                progress.event(
                    f"the teacher's worker was lost; going on from its checkpoint: {line}"
                )
            else:
                return

    def _heard(self, reports: Any) -> Iterator[Report]:
        """What a streaming task yields, while listening for signals, too."""
        while True:
            ready, _ = ray.wait([reports], timeout=SIGNAL_SECONDS)
            self.interruption.listen()
            self.interruption.check()
            if not ready:
                continue
            try:
                yield ray.get(next(reports))
            except StopIteration:
                return

    def _run_trials_to_the_end(
        self, scribe: BackgroundWriter, progress: Progress, *, can_grow: bool
    ) -> None:
        """Run the trials, beginning again where Tune itself breaks: the ledger knows how far."""
        for remaining in reversed(range(MOST_BREAKS + 1)):
            try:
                self._run_trials(scribe, progress, can_grow=can_grow)
            except (ray.exceptions.RayError, tune.TuneError, RuntimeError) as error:
                scribe.log("driver", traceback.format_exc())
                self.interruption.check()
                line = worker.describe_error(error)
                if not remaining:
                    raise SweepError(
                        f"Ray broke again and again: {line} (see logs/driver.log)"
                    ) from error
                progress.event(f"Ray broke; going on from the ledger: {line}")
                scribe.event("broke", why=line)
                self.ledger.reconcile()
            else:
                return

    def _run_trials(self, scribe: BackgroundWriter, progress: Progress, *, can_grow: bool) -> None:
        sampling = Sampling(self.config.space, search=self.config.search, budget=self.config.sweep)
        for record in (*warm_start_records(self.folder), *self.ledger.records()):
            sampling.observe(record)
        searcher = LedgerSearcher(
            self.ledger,
            sampling,
            config=self.config,
            concurrent=self.config.resources.concurrent,
            pack=self._packed_record,
        )
        with ray_cluster.scratch_folder() as scratch:
            tuner = tune.Tuner(
                tune.with_resources(worker.run_trial, nodes.request(self.config.resources)),
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
                            scribe=scribe,
                            progress=progress,
                            interruption=self.interruption,
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
        """None is Tune's own: every trial ends by itself."""
        rule, space = self.config.early_stopping, self.config.space
        if rule.kind == "none":
            return None
        stopping = Stopping(
            kind=rule.kind,
            first=max(first_step(config) for config in space.config_of_each_method()),
            keep=rule.keep,
            growth=rule.growth,
            strata=rule.strata,
        )
        return FrontScheduler(stopping, self.ledger, space)

    def _packed_record(self, record: TrialRecord) -> worker.Job:
        sign, config = params_digest(record.params), self._config_of(record)
        return self._packed(record.number, config, sign=sign, known=record.steps)

    def _config_of(self, record: TrialRecord) -> TrialConfig:
        return self.config.space.trial_config(record.settings)

    def _packed(
        self, number: int, config: TrialConfig, *, sign: str = "", known: int = 0
    ) -> worker.Job:
        address = address_of(self.folder)
        return worker.pack(
            number,
            config,
            teacher=self.folder / "teacher",
            features=self.folder / "features",
            trial=self.folder / "trials" / f"{number:04}",
            ranks=self.config.resources.ranks,
            known=known,
            luggage=RemoteState(address=address, sign=sign) if address else None,
        )


def _trial_name(trial: Any) -> str:
    return f"trial-{trial.config['number']:04}-{trial.trial_id}"
