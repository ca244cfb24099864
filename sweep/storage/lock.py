"""The lock of a sweep's directory: one driver at a time, whose process id can be read.

The system frees the lock when its process ends, in whatever way. If the directory is a working
copy, the driver also holds the lease in the object store, so that no other machine works on it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from sweep.local_lock import LOCK, STOP, LockedError, driver_here, lock_holder, try_lock
from sweep.storage import addresses, sync, working_copy


# The file is opened by "a+", as "w" would erase the process id of the driver that holds the lock.
# `refresh` asks under the same `fetch_lock` whether a driver is here: none starts while a copy is
# fetched.
@contextmanager
def sweep_lock(folder: Path) -> Iterator[None]:
    """Lock the sweep's directory, so that two drivers never write one ledger.

    The system frees the lock when its process ends, in whatever way.

    Raises:
        LockedError: if another live process holds it.
        LeaseError, StoreError, UnsentError: of a working copy.
    """
    is_copy = addresses.address_of(folder) is not None
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        with working_copy.fetch_lock(folder) if is_copy else nullcontext():
            if not try_lock(file):
                raise LockedError(
                    f"`{folder}` must be free, but process {lock_holder(folder)} runs this sweep;"
                    " wait for it, or end it and resume."
                )
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        with sync.hold_store(folder):
            yield


def driver_pid(folder: Path) -> int | None:
    """The process that runs the sweep now, on this machine or another, or None."""
    here = driver_here(folder)
    return here if here is not None else sync.remote_holder(folder)


def request_stop(folder: Path) -> None:
    """Ask the driver for an orderly end."""
    (folder / STOP).touch()
    sync.request_stop(folder)


def is_stop_requested(folder: Path) -> bool:
    """Whether the driver is asked for an orderly end."""
    return (folder / STOP).exists()


def clear_stop(folder: Path) -> None:
    """Remove a request that was meant for an earlier driver."""
    (folder / STOP).unlink(missing_ok=True)
    sync.clear_stop(folder)
