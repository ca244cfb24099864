"""Background tasks of a driver on a working copy: renew its lease, send changes, poll `stop`."""

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
from sweep.storage.object_store import Remote, StoreError, retry_while_away
from sweep.storage.working_copy import STOP, Sender, fetch

SEND_SECONDS = 15.0
"""Changes reach the store after so long at most, while it can be reached."""
STOP_SECONDS = 5.0
"""Time between two looks for a request to end."""
END_SECONDS = 300.0
"""A driver waits at its end so long for a store that is away."""

logger = logging.getLogger(__name__)


class UnsentError(RuntimeError):
    """The store was away at the end; the working copy is newer."""

    exit_code = 75


@contextmanager
def hold_store(folder: Path) -> Iterator[None]:
    """Hold the lease of a working copy's sweep for one driver; fetch it, and send its changes.

    Does nothing for a directory that is no working copy.

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
    other = lease.acquire()
    if other is not None:
        raise LockedError(
            f"`{address}` must be free, but {other} runs this sweep;"
            " wait for it, or end it and resume."
        )
    # The lease first, and renewed at once: fetching a sweep may take longer than a lease lasts. It
    # is released last, after the changes of the end have been sent.
    with _LeaseRenewal(lease).run_in_background() as renewal:
        fetch(folder, remote)
        sender = Sender(folder, remote)
        tasks = (
            _Task(sender.send, SEND_SECONDS, "send"),
            _Task(lambda: _poll_stop(folder, remote), STOP_SECONDS, "stop"),
        )
        with tasks[0].run_in_background(), tasks[1].run_in_background():
            try:
                yield
            finally:
                # Before anything is sent: a driver that has lost its lease must not overwrite the
                # other's files.
                renewal.check()
                _send_at_end(sender, folder)


def remote_holder(folder: Path) -> int | None:
    """The process that runs the sweep, perhaps on another machine, if the directory is a copy."""
    address = address_of(folder)
    current = holder(Remote(address)) if address is not None else None
    return current.pid if current is not None else None


def request_stop(folder: Path) -> None:
    """Ask for an orderly end wherever the driver is, if the directory is a copy."""
    address = address_of(folder)
    if address is not None:
        Remote(address).write(STOP, b"")


def clear_stop(folder: Path) -> None:
    """Remove a request that was meant for an earlier driver, if the directory is a copy."""
    address = address_of(folder)
    if address is not None:
        Remote(address).delete(STOP)


def _poll_stop(folder: Path, remote: Remote) -> None:
    if remote.read(STOP) is not None:
        (folder / STOP).touch()


def _send_at_end(sender: Sender, folder: Path) -> None:
    try:
        retry_while_away(sender.send, seconds=END_SECONDS)
    except StoreError as error:
        raise UnsentError(
            f"{error}; newer files are in `{folder}`, and resume sends them from this machine"
        ) from error


class _Task:
    """A function that a thread calls again and again; errors of the store are logged."""

    def __init__(self, act: Callable[[], object], seconds: float, name: str) -> None:
        self._act, self._seconds = act, seconds
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"store-{name}", daemon=True)

    @contextmanager
    def run_in_background(self) -> Iterator["_Task"]:
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


class _LeaseRenewal:
    """Renews the lease until the end; if another driver takes it, this one ends in order."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._lost: LeaseError | None = None

    @contextmanager
    def run_in_background(self) -> Iterator["_LeaseRenewal"]:
        try:
            with _Task(self._renew, SECONDS / BEATS, "lease").run_in_background():
                yield self
        finally:
            if self._lost is None:
                self._lease.release()

    def check(self) -> None:
        """Refuse to write after the lease was lost.

        Raises:
            LeaseError: if it was.
        """
        if self._lost is not None:
            raise self._lost

    def _renew(self) -> None:
        if self._lost is not None:
            return
        try:
            self._lease.renew()
        except LeaseError as error:
            self._lost = error
            # A thread cannot end the main thread; this signal ends the sweep in order, as a
            # scheduler's would.
            os.kill(os.getpid(), signal.SIGTERM)
