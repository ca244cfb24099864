"""Who may write a sweep on an object store: one driver, as long as it is heard of.

The lease is an object that its holder rewrites every few seconds. No two clocks are compared: who
wants it watches it, and takes it when it did not change for as long as it says.
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

from sweep.storage.object_store import Found, RefusedError, Remote, StoreError

LEASE = "lease.json"
SECONDS = 30.0
"""A driver unheard of for so long has lost its sweep."""
LONGEST_SECONDS = 86_400.0
KINDS: dict[str, Any] = {
    **dict.fromkeys(("token", "host", "boot", "processes"), str),
    **dict.fromkeys(("beat", "seconds"), (int, float)),
    "pid": int,
    "free": bool,
}
"""What a lease says."""
BEATS = 3
"""So often a lease is renewed before it could be lost."""


class LeaseError(RuntimeError):
    """Another driver has taken the sweep; resume goes on."""

    exit_code = 75


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """Who has the lease."""

    pid: int
    host: str
    age: float
    """Seconds since it was heard of, as far as two clocks agree."""
    seconds: float
    """After which it is nobody's."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lease:
    """The right to write, once `acquire` has returned.

    Args:
        remote: where the sweep is kept.
        seconds: how long it is held without a word.
    """

    def __init__(self, remote: Remote, *, seconds: float = SECONDS) -> None:
        self._remote, self._seconds = remote, seconds
        self._token = uuid.uuid4().hex
        self._mine: Found | None = None

    def acquire(self) -> Holder | None:
        """Take the lease; whoever has it is watched until it is clear that it lives, or does not.

        Returns:
            None, or who has it.
        """
        found = self._remote.read(LEASE)
        while True:
            if found is not None and not _is_free(found):
                later = self._watched(found)
                if later is not None and later.version != found.version and not _is_free(later):
                    return _holder(later)
                found = later
            version = found.version if found is not None else None
            self._mine = self._remote.replace(LEASE, self._text(), version)
            if self._mine is not None:
                return None
            found = self._remote.read(LEASE)

    def renew(self) -> None:
        """Say that its holder lives.

        Raises:
            LeaseError: if another has taken it.
            StoreError: if the store cannot be reached.
        """
        assert self._mine is not None, "only what is held is renewed"
        renewed = self._remote.replace(LEASE, self._text(), self._mine.version)
        if renewed is None:  # our own word may have arrived though its answer did not
            renewed = self._remote.read(LEASE)
            if renewed is None or _values(renewed)["token"] != self._token:
                raise LeaseError(
                    f"`{self._remote.address}` must be held by one driver, but"
                    f" {_holder(renewed) or 'another'} has taken it; resume goes on"
                )
        self._mine = renewed

    def release(self) -> None:
        """Leave it to anyone; it ends by itself if the store is away."""
        if self._mine is not None:
            with suppress(StoreError):
                self._remote.replace(LEASE, self._text(is_free=True), self._mine.version)
            self._mine = None

    def _watched(self, found: Found) -> Found | None:
        """The lease once it has changed, or after as long as it says."""
        give_up = time.monotonic() + float(_values(found)["seconds"])
        while time.monotonic() < give_up:
            time.sleep(min(1.0, self._seconds / 10))
            later = self._remote.read(LEASE)
            if later is None or later.version != found.version:
                return later
        return found

    def _text(self, *, is_free: bool = False) -> bytes:
        values = {"token": self._token, "beat": time.time(), "seconds": self._seconds, **_self()}
        return json.dumps(values | {"free": is_free}).encode()


def holder(remote: Remote) -> Holder | None:
    """Who runs the sweep now, if its last word is not older than it may be."""
    found = remote.read(LEASE)
    if found is None or _is_free(found):
        return None
    has = _holder(found)
    return has if has is not None and has.age < has.seconds else None


def _holder(found: Found | None) -> Holder | None:
    if found is None:
        return None
    values = _values(found)
    return Holder(
        pid=values["pid"],
        host=values["host"],
        age=time.time() - values["beat"],
        seconds=values["seconds"],
    )


def _values(found: Found) -> dict[str, Any]:
    """What a lease says; whoever may write to the store may have written it.

    Raises:
        RefusedError: if it is no lease, or would hold the sweep for more than a day.
    """
    try:
        values = json.loads(found.data)
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


def _is_free(found: Found) -> bool:
    """Whether it was given back, or its process was of this machine and is no more."""
    values = _values(found)
    if values["free"]:
        return True
    here = _self()
    if any(values[name] != here[name] for name in ("host", "boot", "processes")):
        return False
    return values["pid"] != here["pid"] and not Path(f"/proc/{values['pid']}").exists()


def _self() -> dict[str, Any]:
    """This process, told from any other anywhere."""
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
        "processes": str(Path("/proc/self/ns/pid").readlink()),
    }
