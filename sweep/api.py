"""The interface for notebooks and scripts: open, run and resume sweeps, and use their models.

Everything that the command line shows and does for a sweep, as pandas frames and Python objects:

    from sweep.api import Sweep

    sweep = Sweep.open("demo-sweep")
    sweep.front()[["trial", "wer", "gflops"]]
    sweep.recognizer(7).transcribe(samples, 16_000)

The names in `__all__`, their arguments and the columns of the frames are stable: a change of them
stands in CHANGELOG.md. Importing this module and reading a sweep import neither torch nor Ray.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from core.config.base import ConfigError
from sweep.ledger.records import CurvePoint
from sweep.pareto.front import feasible, pareto_front
from sweep.snapshot import SweepSnapshot, load_snapshot, trial_model_path
from sweep.storage.working_copy import resolve_folder
from sweep.summary import point_rows, status_values, trial_columns, trial_rows

if TYPE_CHECKING:  # imported where they are used: torch takes seconds, pandas half a second
    import numpy as np
    import pandas as pd

    from core.bundle import Bundle
    from core.export.export import ExportResult

__all__ = ["Sweep", "TrialRecognizer"]

Target = Literal["bundle", "onnx", "sherpa", "onnx-asr", "transformers"]


@dataclass(frozen=True, slots=True)
class TrialRecognizer:
    """The pruned model of a trial, ready to transcribe. `Sweep.recognizer` makes it."""

    bundle: "Bundle"
    """The model, its tokenizer and its report, for use with the functions of `core`."""

    @property
    def num_params(self) -> int:
        """Number of parameters of the model."""
        return sum(parameter.numel() for parameter in self.bundle.model.parameters())

    def transcribe(self, samples: "np.ndarray", sample_rate: int) -> str:
        """Transcribe audio in memory, exactly as `conformer-sweep transcribe` does for a file.

        Args:
            samples: one channel, of shape (samples,); floats in [-1, 1], or 16-bit integers.
            sample_rate: samples per second; any rate is resampled to 16 kHz.

        Returns:
            The text; audio too short for one output frame gives an empty one.

        Raises:
            ConfigError: if the sample rate is no integer.
            CorpusError: if the samples are no such array, are empty or hold NaN or infinity.

        Example:
            >>> import soundfile
            >>> samples, sample_rate = soundfile.read("speech.flac")
            >>> sweep.recognizer(7).transcribe(samples, sample_rate)
            'TURN THE LIGHT ON'
        """
        from core.inference.recognizer import transcribe_array

        if int(sample_rate) != sample_rate:
            raise ConfigError(
                f"`sample_rate` must be an integer in Hz, but is {sample_rate} instead; resample"
                " to a whole rate first."
            )
        return transcribe_array(self.bundle, samples, int(sample_rate)).text


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep's directory. `Sweep.open` and `Sweep.run` make it.

    Every call reads the directory anew, so that a sweep can be watched while it runs.
    """

    folder: Path
    """The directory on this machine; of a sweep on an object store, its working copy."""

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open an existing sweep; nothing in its directory changes.

        Args:
            path: its directory, or an address such as `s3://bucket/sweep`.

        Returns:
            The sweep.

        Raises:
            ConfigError: if the directory holds no sweep.
            LedgerError: if its ledger is damaged.
            StoreError: if the address cannot be reached.

        Example:
            >>> Sweep.open("demo-sweep").status()["finished"]
            8
        """
        # Read once and dropped: a wrong path is an error here, and not at the first use of the
        # object.
        return cls(load_snapshot(resolve_folder(str(path))).folder)

    @classmethod
    def run(
        cls,
        space: str | Path | Mapping[str, Any],
        path: str | Path,
        *,
        trials: int | None = None,
        hours: float | None = None,
        address: str | None = None,
    ) -> Self:
        """Start a sweep and wait for its end; an existing one is resumed with this search space.

        Ctrl-C (in a notebook: interrupt the kernel) ends it in order; `resume` continues it.

        Args:
            space: path of a TOML file, name of one in search_spaces, or the table that such a file
                holds: `{"sweep": {"trials": 8}, "trial": {"pruning": {...}}}`.
            path: the sweep's directory, or an address such as `s3://bucket/sweep`.
            trials: number of trials, instead of the search space's.
            hours: limit of all trials together in hours, instead of the search space's.
            address: Ray cluster to join; without one, Ray starts on this machine.

        Returns:
            The sweep; `status` says whether trials failed or wait.

        Raises:
            ConfigError: if the search space is invalid, or changes what must stay the same.
            LockedError: if the sweep runs already.
            CorpusError, BundleError: if the teacher cannot be made.
            ClusterError, TrackingError, StoreError: if a server cannot be reached.
            SweepError: if the sweep cannot continue; finished trials are kept.

        Example:
            >>> sweep = Sweep.run("demo", "demo-sweep", trials=4)
        """
        from sweep.run.library_caches import prepare_process
        from sweep.run.start import create_or_adopt_sweep

        # Before Ray, torch and MLflow are imported, as they read the environment at their import.
        prepare_process()
        folder = resolve_folder(str(path)).absolute()
        named = space if isinstance(space, Mapping) else str(space)
        create_or_adopt_sweep(named, folder, trials=trials, hours=hours)
        return cls(folder.resolve()).resume(address=address)

    def resume(self, *, retry_failed: bool = False, address: str | None = None) -> Self:
        """Run what remains of the sweep, and wait for its end.

        Args:
            retry_failed: whether failed trials are tried again, too.
            address: Ray cluster to join; without one, Ray starts on this machine.

        Returns:
            The sweep itself.

        Raises:
            ConfigError, LedgerError, LockedError, TrackingError, ClusterError: before it starts.
            CorpusError, BundleError: if the teacher cannot be made.
            SweepError: if the sweep cannot continue; finished trials are kept.

        Example:
            >>> Sweep.open("demo-sweep").resume(retry_failed=True).status()["failed"]
            0
        """
        from sweep.run.library_caches import prepare_process

        prepare_process()
        from sweep.run.driver import run as run_segment

        # Its exit code, 0, 3 or 75, is dropped: `status` has the counts, and faults are raised.
        run_segment(self.folder, address=address, should_retry=retry_failed)
        return self

    def status(self) -> dict[str, Any]:
        """Return how far the sweep has come, as `conformer-sweep status --json` prints it.

        Returns:
            Among others `trials` (planned), `waiting`, `running`, `finished`, `stopped`, `failed`
            and `driver`, the process that runs the sweep, or None.

        Raises:
            ConfigError, LedgerError, StoreError: if the directory cannot be read.

        Example:
            >>> Sweep.open("demo-sweep").status()["running"]
            2
        """
        return status_values(self._snapshot())

    def trials(self) -> "pd.DataFrame":
        """Return all trials, one row for each outcome and for each trial that has none yet.

        Returns:
            A frame with the columns of `conformer-sweep trials --json`: WER is a fraction,
            `gflops` is per utterance, `latency_ms` is in milliseconds.

        Raises:
            ConfigError, LedgerError, StoreError: if the directory cannot be read.

        Example:
            >>> Sweep.open("demo-sweep").trials().groupby("method")["wer"].min()
        """
        snapshot = self._snapshot()
        return _frame(trial_rows(snapshot), trial_columns(snapshot))

    def front(
        self,
        *,
        max_wer: float | None = None,
        max_gflops: float | None = None,
        max_params: float | None = None,
        max_latency_ms: float | None = None,
    ) -> "pd.DataFrame":
        """Return the Pareto front, cheapest first: outcomes that no other outcome dominates.

        Args:
            max_wer: a fraction; only outcomes up to it are compared.
            max_gflops: the same for GFLOPs an utterance.
            max_params: the same for the number of parameters.
            max_latency_ms: the same for latency in milliseconds.

        Returns:
            A frame with the columns of `trials`.

        Raises:
            ConfigError, LedgerError, StoreError: if the directory cannot be read.

        Example:
            >>> Sweep.open("demo-sweep").front(max_wer=0.1).plot.scatter("gflops", "wer")
        """
        snapshot = self._snapshot()
        points = feasible(
            snapshot.points,
            max_wer=max_wer,
            max_gflops=max_gflops,
            max_params=max_params,
            max_latency_ms=max_latency_ms,
        )
        # The limits come first: within them a point is on the front that only one beyond them
        # beats.
        points = pareto_front(points, snapshot.config.sweep.objectives)
        return _frame(point_rows(snapshot, points), trial_columns(snapshot))

    def curve(self, trial: int) -> "pd.DataFrame":
        """Return the learning curve of a trial: its evaluations on dev, by step.

        Args:
            trial: its number.

        Returns:
            A frame with the columns `step`, `wer` (a fraction) and `gflops` (of the model that
            the gates describe at that step).

        Raises:
            ConfigError: if the sweep has no such trial.
            LedgerError, StoreError: if the directory cannot be read.

        Example:
            >>> Sweep.open("demo-sweep").curve(7).plot("step", "wer")
        """
        points = self._snapshot().record(trial).curve
        return _frame([point._asdict() for point in points], list(CurvePoint._fields))

    def recognizer(self, trial: int, outcome: int = 0) -> TrialRecognizer:
        """Load the pruned model of a finished trial.

        Args:
            trial: its number, as in the column `trial` of `front`.
            outcome: which of its models, as in the column `outcome`; most trials have one.

        Returns:
            A recognizer on the CPU.

        Raises:
            ConfigError: if there is no such trial, or it has no such outcome.
            BundleError, CorpusError: if the model's files are missing or damaged.

        Example:
            >>> best = sweep.front().sort_values("wer").iloc[0]
            >>> recognizer = sweep.recognizer(best.trial, best.outcome)
        """
        from core import bundle

        return TrialRecognizer(bundle.load(trial_model_path(self._snapshot(), trial, outcome)))

    def export(
        self,
        trial: int,
        *,
        to: Target,
        out: str | Path,
        outcome: int = 0,
        int8: bool = False,
        verify_on: Sequence[str | Path] = (),
    ) -> "ExportResult":
        """Export the model of a finished trial; the folder appears once it is verified.

        Args:
            trial: its number, as in the column `trial` of `front`.
            to: program that will load it: `bundle`, `onnx`, `sherpa` or `transformers`.
            out: a new folder.
            outcome: which of the trial's models, as in the column `outcome`.
            int8: whether to write a graph in 8-bit integers, too.
            verify_on: audio files to compare transcripts on, for `sherpa` and `transformers`.

        Returns:
            The folder, its files, and one line for each check.

        Raises:
            ConfigError: if there is no such trial, or it has no such outcome.
            ExportError: if an extra is missing, the folder exists or the check fails.
            BundleError, CorpusError: if the model, or a file to verify on, cannot be read.

        Example:
            >>> Sweep.open("demo-sweep").export(7, to="onnx", out="model").files
            ('model.onnx', ...)
        """
        from sweep.run.library_caches import prepare_process

        prepare_process()
        from core.export.export import export

        return export(
            trial_model_path(self._snapshot(), trial, outcome),
            Path(out).absolute(),
            to,
            is_int8=int8,
            verify_on=[Path(file) for file in verify_on],
        )

    def _snapshot(self) -> SweepSnapshot:
        return load_snapshot(self.folder)


def _frame(rows: Sequence[Mapping[str, Any]], columns: list[str]) -> "pd.DataFrame":
    """Make a frame that has its columns without any row, too."""
    import pandas as pd

    return pd.DataFrame(list(rows), columns=columns)
