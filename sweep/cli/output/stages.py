"""Shows on stderr what a long command does: a line with a clock on a terminal, plain lines else."""

import threading
import time
from types import TracebackType
from typing import Self

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from sweep.cli.options import err

QUIET_SECONDS = 10.0
"""A command that ends sooner prints no stage where nobody watches."""
EVERY_SECONDS = 10.0
"""The longest silence after that."""
_LOOK_SECONDS = 0.2


class StageReporter:
    """The stages of one command; call `announce` as each begins.

    Args:
        first: the stage that begins at once.
        quiet_seconds: how long nothing is printed, where stderr is no terminal.
        every_seconds: the longest silence after that.
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
        if err.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                TimeElapsedColumn(),
                console=err,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
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
        """Show what begins now."""
        self._stage = stage
        if self._bar is not None:
            self._bar.update(self._task, description=stage)

    def _print_lines(self) -> None:
        """Print each stage that begins after the first seconds, and again what lasts long."""
        printed, printed_at = "", 0.0
        while not self._ended.wait(_LOOK_SECONDS):
            now, stage = time.monotonic(), self._stage
            is_due = stage != printed or now - printed_at >= self._every_seconds
            if is_due and now - self._began >= self._quiet_seconds:
                printed, printed_at = stage, now
                err.print(f"{stage} ({now - self._began:.0f} s)", markup=False)
