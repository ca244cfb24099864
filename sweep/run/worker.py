"""The functions that run on a worker: a trial, a further rank of it, or the shared teacher.

A trial reads its own newest checkpoint and writes the next before it reports, so that this module
handles no checkpoints. The driver imports it without training: `core` is imported in functions.
"""

import errno
import fcntl
import gc
import json
import os
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from core import environment
from core.config.trial import TrialConfig
from core.files import remove_leftovers
from core.report import Outcome, Report
from sweep.run.nodes import check_this_machine
from sweep.run.ray_cluster import ClusterError, LostWorkerError, OtherProgramError
from sweep.search.retry import Kind
from sweep.storage.checkpoints import (
    RemoteState,
    as_plain,
    fetch_shared_state,
    prepare_with_remote_state,
    run_with_remote_state,
)
from sweep.tracking.provenance import code_version

if TYPE_CHECKING:
    from core.distributed import Ranks
    from core.runtime import TrialDirs

PATIENCE_SECONDS = 200.0
"""Workers of a killed driver end long before; NFS holds a dead machine's locks for longer."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""The system's error numbers of a full disk."""

Job = dict[str, Any]
"""A trial as Tune sends it: its number, and one text with all else, which Tune does not parse."""


def make_job(
    number: int,
    config: TrialConfig,
    *,
    teacher: Path,
    features: Path,
    trial: Path,
    ranks: int = 1,
    reported_step: int = 0,
    remote_state: RemoteState | None = None,
) -> Job:
    """A trial as a worker needs it; all paths must be absolute.

    Args:
        number: the trial's.
        config: the trial's.
        teacher: the folder of the teacher.
        features: the folder of the features.
        trial: the trial's own folder.
        ranks: how many processes train it.
        reported_step: reports up to this step are in the ledger.
        remote_state: the state in an object store, if the folders are working copies.
    """
    folders = {"teacher": str(teacher), "features": str(features), "trial": str(trial)}
    job = {"config": config.model_dump(), "dirs": folders, "ranks": ranks, "code": code_version()}
    job |= {"reported_step": reported_step, "remote_state": as_plain(remote_state)}
    return {"number": number, "job": json.dumps(job)}


def run_trial(job: Mapping[str, Any]) -> None:
    """Run a trial; Tune's function trainable. Its last message has the outcomes or the failure."""
    environment.set_defaults(os.environ)
    try:
        from sweep.run.rank_actors import gather_ranks, start_ranks  # noqa: PLC0415  # torch, the worker's alone

        values = json.loads(job["job"])
        # Before the imports, which take seconds: the other ranks import at the same time.
        start_ranks(values["ranks"])
        from core.runtime import select_device  # noqa: PLC0415  # seconds of imports
        from core.trial import run  # noqa: PLC0415  # seconds of imports

        config, dirs = _read_job(job)
        remote_state = _remote_state(job)
        check_this_machine(None if remote_state else dirs.teacher, values["code"])
        with (
            raise_full_disk(dirs.trial),
            _hold_folder(dirs.trial),
            gather_ranks(job, values["ranks"], run_rank, select_device(config)) as ranks,
        ):
            sweep = dirs.teacher.parent
            trial = run(config, dirs, ranks, last_known_step=values["reported_step"])
            for message in _messages(
                run_with_remote_state(trial, remote_state, folder=dirs.trial, sweep=sweep)
            ):
                tune.report(message)
    # The driver takes an error without a report of a failure for a lost worker, at no cost.
    except LostWorkerError:
        raise  # reports nothing, as if this worker itself had been lost
    except Exception as error:
        failure = {
            "kind": error_kind(error),
            "line": describe_error(error),
            "traceback": traceback.format_exc(),
        }
        tune.report({"failure": failure})
        raise  # so that Tune gives the next trial a fresh process
    finally:
        _release_memory()


def run_rank(
    job: Mapping[str, Any], join: Callable[[Any], AbstractContextManager["Ranks"]]
) -> None:
    """Run a further rank of a trial, which reports nothing."""
    environment.set_defaults(os.environ)
    from core.runtime import select_device  # noqa: PLC0415  # seconds of imports
    from core.trial import run  # noqa: PLC0415  # seconds of imports

    config, dirs = _read_job(job)
    try:
        with join(select_device(config)) as ranks:
            fetch_shared_state(_remote_state(job), sweep=dirs.teacher.parent)
            for _ in run(config, dirs, ranks):
                pass
    finally:
        _release_memory()


def prepare_shared(job: Mapping[str, Any]) -> Iterator[Report]:
    """Prepare corpus, features and teacher, once a sweep; a streaming task of Ray."""
    environment.set_defaults(os.environ)
    from core.teacher import prepare  # noqa: PLC0415  # seconds of imports, the worker's alone

    config, dirs = _read_job(job)
    with raise_full_disk(dirs.teacher), _hold_folder(dirs.teacher):
        remove_leftovers(dirs.features, is_recursive=True)
        yield from prepare_with_remote_state(
            prepare(config, dirs), _remote_state(job), sweep=dirs.teacher.parent
        )


def describe_error(error: BaseException) -> str:
    """An error in one line: the message of a user's error, else the type and the message."""
    lines = str(error).strip().splitlines()
    line = lines[0] if lines else ""
    return line if isinstance(error, ValueError) and line else f"{type(error).__name__}: {line}"


def _release_memory() -> None:
    """Free what trials leave in cycles, and return it to the system."""
    gc.collect()
    environment.return_freed_memory()


def error_kind(error: BaseException) -> Kind:
    """The kind of an error, which decides whether and how the trial is tried again."""
    from core.data.audio_decoding import CorpusError  # noqa: PLC0415  # the worker's alone
    from core.training.loop import DivergenceError  # noqa: PLC0415  # the worker's alone

    if isinstance(error, CorpusError):
        return "data"
    if isinstance(error, OtherProgramError):
        return "program"
    if isinstance(error, ClusterError):
        return "cluster"
    if isinstance(error, DivergenceError):
        return "divergence"
    if isinstance(error, OSError) and error.errno in FULL:
        return "disk"
    # A GPU's error has a type; a CPU's is recognized by its message alone.
    is_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return "memory" if is_memory or "not enough memory" in str(error) else "other"


def _read_job(job: Mapping[str, Any]) -> tuple[TrialConfig, "TrialDirs"]:
    from core.runtime import TrialDirs  # noqa: PLC0415  # seconds of imports, the worker's alone

    values = json.loads(job["job"])
    dirs = TrialDirs(**{name: Path(folder) for name, folder in values["dirs"].items()})
    return TrialConfig.parse(values["config"]), dirs


def _remote_state(job: Mapping[str, Any]) -> RemoteState | None:
    values = json.loads(job["job"])["remote_state"]
    return RemoteState(**values) if values else None


@contextmanager
def raise_full_disk(folder: Path) -> Iterator[None]:
    """Raise the system's own error if the disk is full, whichever library failed.

    torch's writer and safetensors' raise errors of their own, some with the system's as a cause.

    Raises:
        OSError: with ENOSPC, naming the folder.
    """
    try:
        yield
    except Exception as error:
        if not _is_full_disk(error):
            raise
        reason = os.strerror(errno.ENOSPC)
        raise OSError(errno.ENOSPC, reason, str(folder)) from error


def _is_full_disk(error: BaseException | None) -> bool:
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        # Libraries in Rust have the number in the text alone: "No space left on device (os error
        # 28)".
        if number in FULL or f"os error {errno.ENOSPC}" in str(error):
            return True
        # An error raised without `from` in an `except` block has a context only.
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _hold_folder(folder: Path) -> Iterator[None]:
    """Lock a folder of checkpoints: the workers of a killed driver outlive it by a moment.

    Files that they left incomplete are removed.

    Raises:
        LostWorkerError: if another worker does not release it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a", encoding="utf-8") as file:
        # Polled, as a blocking `flock` has no timeout.
        give_up, is_locked = time.monotonic() + PATIENCE_SECONDS, True
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > give_up:
                    raise LostWorkerError(
                        f"`{folder}` must be free, but another worker holds its lock."
                    ) from error
                time.sleep(0.1)
            except OSError:
                is_locked = False  # a file system without locks; Ray gives a trial to one worker
                break
        remove_leftovers(folder, is_recursive=True, is_locked=is_locked)
        yield


def _messages(trial: Generator[Report, None, list[Outcome]]) -> Iterator[dict[str, Any]]:
    while True:
        try:
            report = next(trial)
        except StopIteration as end:
            yield {"outcomes": [asdict(outcome) for outcome in end.value]}
            return
        yield {"report": asdict(report)}
