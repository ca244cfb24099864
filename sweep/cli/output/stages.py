"""Progress of a long command on stderr: a line with a clock on a terminal, else plain lines."""

import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from sweep.cli.options import err

if TYPE_CHECKING:
    from rich.progress import Progress

QUIET_SECONDS = 10.0
"""Where stderr is no terminal, a command that ends sooner prints no stage."""
EVERY_SECONDS = 10.0
"""Seconds between two lines after that, at most."""
_LOOK_SECONDS = 0.2


class StageReporter:
    """Shows the stages of one command; call `announce` when a stage begins.

    Args:
        first: name of the stage that begins at once.
        quiet_seconds: seconds without output at the start, where stderr is no terminal.
        every_seconds: seconds between two lines after that, at most.
    """

    def __init__(
        self,
        first: str,
        *,
        quiet_seconds: float = QUIET_SECONDS,
        every_seconds: float = EVERY_SECONDS,
    ) -> None:
        self._stage, self._began = first, time.monotonic()
        self._quiet_seconds, self._every_seconds = quiet_seconds, every_seconds
        self._ended = threading.Event()
        self._bar: Progress | None = None
        # A spinner in a log file would be thousands of lines.
        if err.is_terminal:
            self._bar = _make_bar()
            self._task = self._bar.add_task(first, total=None)
        self._thread = threading.Thread(target=self._print_lines, daemon=True)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        else:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._bar is not None:
            self._bar.stop()
        else:
            self._thread.join()

    def announce(self, stage: str) -> None:
        """Shows the name of the stage that begins now."""
        self._stage = stage
        if self._bar is not None:
            self._bar.update(self._task, description=stage)

    def _print_lines(self) -> None:
        """Prints each stage that begins after the quiet seconds, and repeats a long one."""
        printed, printed_at = "", 0.0
        # The event instead of a sleep, so that a command that ends does not wait for its thread.
        while not self._ended.wait(_LOOK_SECONDS):
            now, stage = time.monotonic(), self._stage
            # A stage that begins and ends between two looks is not printed: the thread looks five
            # times a second.
            is_due = stage != printed or now - printed_at >= self._every_seconds
            if is_due and now - self._began >= self._quiet_seconds:
                printed, printed_at = stage, now
                err.print(f"{stage} ({now - self._began:.0f} s)", markup=False)


def _make_bar() -> "Progress":
    """Returns a line with a spinner and a clock, which disappears at the end."""
    from rich.progress import (  # the commands that only read need none of it
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
