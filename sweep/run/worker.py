"""What runs on a worker: one trial of core, or the teacher all trials share; reports come out.

A trial reads its own newest checkpoint and writes the next before it reports, so that nothing here
needs to know of either. The driver imports this file too but never trains: core is imported inside.
"""

import ctypes
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

from core.config.trial import TrialConfig
from core.files import remove_leftovers
from core.report import Outcome, Report
from sweep.run.nodes import check_here
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
"""Workers of a killed driver are gone long before; NFS keeps a dead machine's locks for longer."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""How the system says that a disk holds no more."""

Job = dict[str, Any]
"""A trial as Tune carries it: its number, and one text with all else, which Tune leaves alone."""


def pack(
    number: int,
    config: TrialConfig,
    *,
    teacher: Path,
    features: Path,
    trial: Path,
    ranks: int = 1,
    known: int = 0,
    luggage: RemoteState | None = None,
) -> Job:
    """A trial on its way to a worker; all paths must be absolute.

    Args:
        number: the trial's.
        config: what it shall be.
        teacher: the folder of what all trials share of the teacher.
        features: the folder of the features.
        trial: its own.
        ranks: how many work on it.
        known: the step up to which its reports are known.
        luggage: where its state is kept, if the folders are but copies.
    """
    place = {"teacher": str(teacher), "features": str(features), "trial": str(trial)}
    job = {"config": config.model_dump(), "place": place, "ranks": ranks, "code": code_version()}
    job |= {"known": known, "luggage": as_plain(luggage)}
    return {"number": number, "job": json.dumps(job)}


def run_trial(job: Mapping[str, Any]) -> None:
    """Tune's function trainable: its last message carries the outcomes, or why there are none."""
    try:
        from sweep.run.rank_actors import gather_ranks, start_ranks  # noqa: PLC0415  # torch, the worker's alone

        values = json.loads(job["job"])
        start_ranks(values["ranks"])
        from core.runtime import select_device  # noqa: PLC0415  # seconds of imports
        from core.trial import run  # noqa: PLC0415  # seconds of imports

        config, place = _unpacked(job)
        luggage = _luggage(job)
        check_here(None if luggage else place.teacher, values["code"])
        with (
            full_disk_told(place.trial),
            _alone(place.trial),
            gather_ranks(job, values["ranks"], run_rank, select_device(config)) as ranks,
        ):
            sweep = place.teacher.parent
            trial = run(config, place, ranks, last_known_step=values["known"])
            for message in _messages(
                run_with_remote_state(trial, luggage, folder=place.trial, sweep=sweep)
            ):
                tune.report(message)
    except LostWorkerError:
        raise  # without a word: it is as if this worker itself had been lost
    except Exception as error:
        failure = {
            "kind": kind_of(error),
            "line": describe_error(error),
            "traceback": traceback.format_exc(),
        }
        tune.report({"failure": failure})
        raise  # so that Tune gives the next trial a fresh process
    finally:
        _give_back_memory()


def run_rank(
    job: Mapping[str, Any], join: Callable[[Any], AbstractContextManager["Ranks"]]
) -> None:
    """A further rank of a trial, which has nothing to tell."""
    from core.runtime import select_device  # noqa: PLC0415  # seconds of imports
    from core.trial import run  # noqa: PLC0415  # seconds of imports

    config, place = _unpacked(job)
    try:
        with join(select_device(config)) as ranks:
            fetch_shared_state(_luggage(job), sweep=place.teacher.parent)
            for _ in run(config, place, ranks):
                pass
    finally:
        _give_back_memory()


def prepare_shared(job: Mapping[str, Any]) -> Iterator[Report]:
    """Corpus, features and teacher, once a sweep; a streaming task of Ray."""
    from core.teacher import prepare  # noqa: PLC0415  # seconds of imports, the worker's alone

    config, place = _unpacked(job)
    with full_disk_told(place.teacher), _alone(place.teacher):
        remove_leftovers(place.features, is_recursive=True)
        yield from prepare_with_remote_state(
            prepare(config, place), _luggage(job), sweep=place.teacher.parent
        )


def describe_error(error: BaseException) -> str:
    """An error in one line. What a person can get wrong explains itself; the rest is named."""
    lines = str(error).strip().splitlines()
    line = lines[0] if lines else ""
    return line if isinstance(error, ValueError) and line else f"{type(error).__name__}: {line}"


def _give_back_memory() -> None:
    """Return freed memory to the system, which glibc keeps for the thread that had it.

    Tune runs each trial of a reused process in a thread of its own: without this the process grew
    by a gigabyte a trial.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not everywhere
    if trim is not None:
        trim(0)


def kind_of(error: BaseException) -> Kind:
    """What went wrong, as far as it decides what becomes of the trial."""
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
    # A GPU's error has a type; a CPU's is told by its words alone.
    is_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return "memory" if is_memory or "not enough memory" in str(error) else "other"


def _unpacked(job: Mapping[str, Any]) -> tuple[TrialConfig, "TrialDirs"]:
    from core.runtime import TrialDirs  # noqa: PLC0415  # seconds of imports, the worker's alone

    values = json.loads(job["job"])
    place = TrialDirs(**{name: Path(folder) for name, folder in values["place"].items()})
    return TrialConfig.parse(values["config"]), place


def _luggage(job: Mapping[str, Any]) -> RemoteState | None:
    values = json.loads(job["job"])["luggage"]
    return RemoteState(**values) if values else None


@contextmanager
def full_disk_told(folder: Path) -> Iterator[None]:
    """Say by the system's own error that the disk is full, whatever library tripped over it.

    torch's writer and safetensors' raise errors of their own, some with the system's behind them.
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
        if number in FULL or f"os error {errno.ENOSPC}" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder of checkpoints: a killed driver's workers outlive it by a moment.

    What those left half written is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a", encoding="utf-8") as file:
        give_up, is_locked = time.monotonic() + PATIENCE_SECONDS, True
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > give_up:
                    raise LostWorkerError(f"`{folder}` is held by another worker.") from error
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
