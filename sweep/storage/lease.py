"""The right to write a sweep on an object store, which one driver has for a limited time.

The lease is an object that its holder rewrites every few seconds. No two clocks are compared:
another driver watches it, and takes it if it has not changed for the seconds that it states.
"""

import json
import os
import socket
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.storage.object_store import RefusedError, Remote, StoredObject, StoreError

LEASE = "lease.json"
SECONDS = 30.0
"""A driver that does not renew its lease for so long has lost its sweep."""
LONGEST_SECONDS = 86_400.0
KINDS: dict[str, Any] = {
    **dict.fromkeys(("token", "host", "boot", "processes"), str),
    **dict.fromkeys(("beat", "seconds"), (int, float)),
    "pid": int,
    "free": bool,
}
"""The keys of a lease, and the types of their values."""
BEATS = 3
"""So often a lease is renewed before it could be lost."""


class LeaseError(RuntimeError):
    """Another driver has taken the lease; `resume` goes on."""

    exit_code = 75


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """The process that has the lease."""

    pid: int
    host: str
    age: float
    """Seconds since it was renewed, as far as two clocks agree."""
    seconds: float
    """The lease expires after so long without a renewal."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lease:
    """The right to write, once `acquire` has returned.

    Args:
        remote: the sweep's objects.
        seconds: how long it lasts without a renewal.
    """

    def __init__(self, remote: Remote, *, seconds: float = SECONDS) -> None:
        self._remote, self._seconds = remote, seconds
        self._token = uuid.uuid4().hex
        self._mine: StoredObject | None = None

    def acquire(self) -> Holder | None:
        """Take the lease; a holder is watched until it is clear whether it lives.

        Returns:
            None, or the live holder.
        """
        # Each turn returns a live holder, or replaces the version that it watched. If anyone was
        # faster, the replacement fails, and the new lease is watched in turn.
        lease = self._remote.read(LEASE)
        while True:
            if lease is not None and not _is_free(lease):
                later = self._wait_for_change(lease)
                # A beat every 10 s (30 / 3): a live holder is known after some 10 s, a lost one
                # after 30.
                if later is not None and later.version != lease.version and not _is_free(later):
                    return _parse_holder(later)
                lease = later
            version = lease.version if lease is not None else None
            self._mine = self._remote.replace(LEASE, self._text(), version)
            if self._mine is not None:
                return None
            lease = self._remote.read(LEASE)

    def renew(self) -> None:
        """Renew the lease.

        Raises:
            LeaseError: if another has taken it.
            StoreError: if the store cannot be reached.
        """
        assert self._mine is not None, "only what is held is renewed"
        renewed = self._remote.replace(LEASE, self._text(), self._mine.version)
        if renewed is None:  # our own write may have arrived although its answer did not
            renewed = self._remote.read(LEASE)
            if renewed is None or _values(renewed)["token"] != self._token:
                raise LeaseError(
                    f"`{self._remote.address}` must be held by one driver, but"
                    f" {_parse_holder(renewed) or 'another'} has taken it; resume goes on"
                )
        self._mine = renewed

    def release(self) -> None:
        """Free the lease; it expires by itself if the store is away."""
        if self._mine is not None:
            with suppress(StoreError):
                self._remote.replace(LEASE, self._text(is_free=True), self._mine.version)
            self._mine = None

    def _wait_for_change(self, lease: StoredObject) -> StoredObject | None:
        """The lease once it has changed, or after the seconds that it states."""
        # The holder's own seconds, measured by this machine's clock. The time in the lease is
        # another machine's, and only shown.
        give_up = time.monotonic() + float(_values(lease)["seconds"])
        while time.monotonic() < give_up:
            time.sleep(min(1.0, self._seconds / 10))
            later = self._remote.read(LEASE)
            if later is None or later.version != lease.version:
                return later
        return lease

    def _text(self, *, is_free: bool = False) -> bytes:
        values = {"token": self._token, "beat": time.time(), "seconds": self._seconds, **_self()}
        return json.dumps(values | {"free": is_free}).encode()


def holder(remote: Remote) -> Holder | None:
    """The process that runs the sweep now, if its lease has not expired."""
    lease = remote.read(LEASE)
    if lease is None or _is_free(lease):
        return None
    current = _parse_holder(lease)
    return current if current is not None and current.age < current.seconds else None


def _parse_holder(lease: StoredObject | None) -> Holder | None:
    if lease is None:
        return None
    values = _values(lease)
    return Holder(
        pid=values["pid"],
        host=values["host"],
        age=time.time() - values["beat"],
        seconds=values["seconds"],
    )


def _values(lease: StoredObject) -> dict[str, Any]:
    """The values of a lease, which anybody with access to the store may have written.

    Raises:
        RefusedError: if it is no lease, or would last for more than a day.
    """
    try:
        values = json.loads(lease.data)
        is_right = all(isinstance(values[name], kind) for name, kind in KINDS.items())
        is_right = is_right and 0 < values["seconds"] <= LONGEST_SECONDS
    except (ValueError, TypeError, KeyError, RecursionError):
        is_right, values = False, {}
    if not is_right:
        raise RefusedError(
            f"`{LEASE}` of the store must be a driver's lease, but is damaged;"
            " delete it there if no driver runs."
        )
    return dict(values)


def _is_free(lease: StoredObject) -> bool:
    """Whether the lease was released, or its process ran on this machine and has ended."""
    values = _values(lease)
    if values["free"]:
        return True
    here = _self()
    # A process id says something only where it was given: on the same host, since the same boot,
    # and in the same namespace, as each container counts its own processes from 1.
    if any(values[name] != here[name] for name in ("host", "boot", "processes")):
        return False
    return values["pid"] != here["pid"] and not Path(f"/proc/{values['pid']}").exists()


def _self() -> dict[str, Any]:
    """Values that identify this process among those of all machines."""
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
        "processes": str(Path("/proc/self/ns/pid").readlink()),
    }
