"""Requests for an orderly end: signals, and the file `stop` in the sweep's directory."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from sweep.storage.lock import is_stop_requested

SIGNAL_SECONDS = 1.0
"""The driver looks for signals and for the file at least so often."""


class SignalHandler:
    """Ends a sweep in order after SIGINT, SIGTERM, SIGHUP, SIGUSR1, or a request in its directory.

    SIGHUP comes when the terminal is closed or a connection drops; under `nohup` it is ignored.
    An exception of a signal handler can be lost inside Ray, so the request is also remembered.

    Args:
        folder: the sweep's directory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._is_requested = False
        self._polled_at = 0.0

    def poll(self) -> None:
        """Look for a request in the sweep's directory, at most once a second."""
        if time.monotonic() - self._polled_at < SIGNAL_SECONDS or self._is_requested:
            return
        self._polled_at = time.monotonic()
        if is_stop_requested(self._folder):
            self.request_stop()

    def request_stop(self) -> None:
        """Request an orderly end from inside the program."""
        signal.raise_signal(signal.SIGTERM)

    def check(self) -> None:
        """End if an orderly end was requested.

        Raises:
            KeyboardInterrupt: if it was.
        """
        if self._is_requested:
            raise KeyboardInterrupt

    @contextmanager
    def install(self) -> Iterator[None]:
        """Handle the signals; entered again after Ray has started, which replaces SIGTERM's."""
        names = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            names.append(signal.SIGHUP)
        before = [signal.signal(name, self._handle) for name in names]
        try:
            yield
        finally:
            for name, handler in zip(names, before, strict=True):
                signal.signal(name, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGHUP and self._is_requested:
            return  # a shell that is hung up signals its jobs, and when it ends the system does too
        self._is_requested = True
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)  # Tune ends in order when it receives this one
