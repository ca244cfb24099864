"""The lock of a sweep's folder on this machine."""

import fcntl
import time
from pathlib import Path
from typing import TextIO

LOCK = "lock"


STOP = "stop"
"""File that asks for an orderly end; it also reaches a driver on another machine."""


class LockedError(RuntimeError):
    """Another driver holds the sweep's directory."""


def driver_here(folder: Path) -> int | None:
    """The process on this machine that holds the directory, or None.

    Raises:
        LockedError: if its lock is no file.
    """
    if (folder / LOCK).is_fifo():  # to open it would wait for ever
        raise LockedError(f"`{folder / LOCK}` must be a file, but is a pipe instead.")
    try:
        with (folder / LOCK).open(encoding="utf-8") as file:
            # The file's process id alone says nothing: after a kill it stays, and may be another
            # program's. The shared lock is freed when the file is closed.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return lock_holder(folder)
    return None


def try_lock(file: TextIO) -> bool:
    """Lock an open file; returns False if another process holds it."""
    for _ in range(5):  # `driver_pid` holds it too, for an instant
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        else:
            return True
    return False


def lock_holder(folder: Path) -> int:
    """The process id in a lock file, or 0 if there is none."""
    text = (folder / LOCK).read_text(encoding="utf-8").strip()
    return int(text) if text.isdigit() else 0
