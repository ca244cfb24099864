"""Whose a sweep's directory is: one driver at a time, and who reads can see which.

The system frees the lock with the process that holds it, however that ends. Of a directory that is
a working copy, what it is a copy of is held, too: no other machine works on it meanwhile.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TextIO

from sweep.store import copy, mirror

LOCK = "lock"
STOP = "stop"
"""The word for an orderly end, which reaches a driver on another machine, too."""


class LockedError(RuntimeError):
    """Another driver lives in the sweep's directory."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the sweep's directory: two drivers never write one ledger.

    The system frees the lock with the process that holds it, however that ends.

    Raises:
        LockedError: if another live process holds it.
        LeaseError, StoreError, UnsentError: of a working copy.
    """
    is_copy = copy.address_of(folder) is not None
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        with copy.gate(folder) if is_copy else nullcontext():
            if not _seize(file):
                raise LockedError(
                    f"`{folder}` must be free, but process {_holder(folder)} runs this sweep;"
                    " wait for it, or end it and resume."
                )
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        with mirror.held(folder):
            yield


def driver_pid(folder: Path) -> int | None:
    """The process that runs the sweep now, wherever that is, or None."""
    here = driver_here(folder)
    return here if here is not None else mirror.remote_holder(folder)


def driver_here(folder: Path) -> int | None:
    """The process that works in this very directory, or None."""
    if (folder / LOCK).is_fifo():  # to open it would wait for ever
        raise LockedError(f"`{folder / LOCK}` must be a file, but is a pipe instead.")
    try:
        with (folder / LOCK).open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return _holder(folder)
    return None


def ask_to_stop(folder: Path) -> None:
    """Ask whoever runs the sweep for an orderly end."""
    (folder / STOP).touch()
    mirror.leave_word(folder)


def is_stop_asked(folder: Path) -> bool:
    return (folder / STOP).exists()


def clear_stop(folder: Path) -> None:
    """Forget what an earlier driver was asked."""
    (folder / STOP).unlink(missing_ok=True)
    mirror.forget_word(folder)


def _seize(file: TextIO) -> bool:
    for _ in range(5):  # `driver_pid` holds it too, for an instant
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        else:
            return True
    return False


def _holder(folder: Path) -> int:
    text = (folder / LOCK).read_text(encoding="utf-8").strip()
    return int(text) if text.isdigit() else 0
