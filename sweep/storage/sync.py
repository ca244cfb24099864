"""Beside a driver: its word that it lives, and its working copy on the way to the store."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sweep.local_lock import LockedError
from sweep.storage.addresses import address_of
from sweep.storage.lease import BEATS, SECONDS, Lease, LeaseError, holder
from sweep.storage.object_store import Remote, StoreError, patiently
from sweep.storage.working_copy import STOP, Sender, fetch

SEND_SECONDS = 15.0
"""What the store has is older than the copy by so much at most, while it can be reached."""
STOP_SECONDS = 5.0
"""So often the word for an orderly end is looked for."""
END_SECONDS = 300.0
"""So long a driver waits at its end for a store that is away."""

logger = logging.getLogger(__name__)


class UnsentError(RuntimeError):
    """The store was away at the end; what it lacks lies in the working copy."""

    exit_code = 75


@contextmanager
def hold_store(folder: Path) -> Iterator[None]:
    """Hold what a copy is a copy of, for one driver; fetch it, and send it as it changes.

    Of a directory that is no copy nothing is held.

    Raises:
        LockedError: if another driver has it.
        LeaseError: if another took it meanwhile.
        StoreError: if the store cannot be reached.
        UnsentError: if it was away at the end.
    """
    address = address_of(folder)
    if address is None:
        yield
        return
    remote = Remote(address)
    lease = Lease(remote)
    has = lease.acquire()
    if has is not None:
        raise LockedError(
            f"`{address}` must be free, but {has} runs this sweep;"
            " wait for it, or end it and resume."
        )
    with _Beats(lease).going_on() as beats:
        fetch(folder, remote)
        sender = Sender(folder, remote)
        tasks = (
            _Task(sender.send, SEND_SECONDS, "send"),
            _Task(lambda: _bring_the_word(folder, remote), STOP_SECONDS, "stop"),
        )
        with tasks[0].going_on(), tasks[1].going_on():
            try:
                yield
            finally:
                beats.check()
                _send_the_last(sender, folder)


def remote_holder(folder: Path) -> int | None:
    """The process that runs the sweep, perhaps on another machine, if the directory is a copy."""
    address = address_of(folder)
    has = holder(Remote(address)) if address is not None else None
    return has.pid if has is not None else None


def request_stop(folder: Path) -> None:
    """Ask for an orderly end wherever the driver is, if the directory is a copy."""
    address = address_of(folder)
    if address is not None:
        Remote(address).write(STOP, b"")


def clear_stop(folder: Path) -> None:
    """Forget what an earlier driver was asked, if the directory is a copy."""
    address = address_of(folder)
    if address is not None:
        Remote(address).delete(STOP)


def _bring_the_word(folder: Path, remote: Remote) -> None:
    if remote.read(STOP) is not None:
        (folder / STOP).touch()


def _send_the_last(sender: Sender, folder: Path) -> None:
    try:
        patiently(sender.send, seconds=END_SECONDS)
    except StoreError as error:
        raise UnsentError(
            f"{error}; what it lacks lies in `{folder}`, and resume sends it from this machine"
        ) from error


class _Task:
    """Something done again and again in a thread of its own; a store that is away is no end."""

    def __init__(self, act: Callable[[], object], seconds: float, name: str) -> None:
        self._act, self._seconds = act, seconds
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"store-{name}", daemon=True)

    @contextmanager
    def going_on(self) -> Iterator["_Task"]:
        self._thread.start()
        try:
            yield self
        finally:
            self._is_over.set()
            self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(self._seconds):
            try:
                self._act()
            except (StoreError, OSError) as error:
                logger.warning("Tried again later: %s", error)


class _Beats:
    """The lease, renewed until the end; if another takes it, the driver ends in order."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._lost: LeaseError | None = None

    @contextmanager
    def going_on(self) -> Iterator["_Beats"]:
        try:
            with _Task(self._beat, SECONDS / BEATS, "lease").going_on():
                yield self
        finally:
            if self._lost is None:
                self._lease.release()

    def check(self) -> None:
        """Refuse to write any more.

        Raises:
            LeaseError: if the lease was lost.
        """
        if self._lost is not None:
            raise self._lost

    def _beat(self) -> None:
        if self._lost is not None:
            return
        try:
            self._lease.renew()
        except LeaseError as error:
            self._lost = error
            os.kill(os.getpid(), signal.SIGTERM)
