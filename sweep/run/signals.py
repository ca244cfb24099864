"""An orderly end, asked for by a signal or by a word in the sweep's directory."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from sweep.storage.lock import is_stop_asked

SIGNAL_SECONDS = 1.0
"""Signals are heard, and the word looked for, at least so often."""


class SignalHandler:
    """Whether an orderly end was asked for: SIGINT, SIGTERM, SIGHUP and SIGUSR1 are all the same.

    SIGHUP comes when the terminal is closed or a connection drops; under `nohup` it is ignored.

    So is the word left in the sweep's directory, by whoever can reach it. What a handler raises
    can be lost inside Ray, so it is also written down.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._is_asked = False
        self._looked_at = 0.0

    def listen(self) -> None:
        """Look for the word, at most once a second; if it is there, it is as a signal."""
        if time.monotonic() - self._looked_at < SIGNAL_SECONDS or self._is_asked:
            return
        self._looked_at = time.monotonic()
        if is_stop_asked(self._folder):
            self.ask()

    def ask(self) -> None:
        """Ask for an orderly end from inside."""
        signal.raise_signal(signal.SIGTERM)

    def check(self) -> None:
        if self._is_asked:
            raise KeyboardInterrupt

    @contextmanager
    def install(self) -> Iterator[None]:
        """Listen; to be entered again after Ray has started, which takes SIGTERM."""
        names = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            names.append(signal.SIGHUP)
        before = [signal.signal(name, self._ask) for name in names]
        try:
            yield
        finally:
            for name, handler in zip(names, before, strict=True):
                signal.signal(name, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGHUP and self._is_asked:
            return  # a shell that is hung up signals its jobs, and at its end the system does, too
        self._is_asked = True
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)  # Tune, while it runs, makes an orderly end of it
