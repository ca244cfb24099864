"""Output of `transcribe`: results on stdout or in files, progress on stderr."""

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from sweep.cli.options import BAD_INPUT, err, out, print_error
from sweep.cli.output.json_text import as_json
from sweep.cli.output.stages import StageReporter
from sweep.cli.output.subtitles import Format, render_transcript, values_of

if TYPE_CHECKING:  # torch takes seconds
    from sweep.cli.transcribe_files import Result


class TranscriptWriter:
    """Writes each result to its file or to stdout, and reports failures at the end.

    Args:
        written_as: format of all transcripts.
        has_words: whether JSON contains the words and their times.
        paths: output path for each audio file; None prints the transcripts.
    """

    def __init__(
        self, written_as: Format, *, has_words: bool, paths: dict[Path, Path] | None
    ) -> None:
        self.written_as, self.has_words, self.paths = written_as, has_words, paths
        self._values: list[dict[str, Any]] = []
        self._failed: list[Path] = []

    def write(self, result: "Result") -> None:
        """Writes the transcript of one file, or prints why there is none."""
        from sweep.cli.transcribe_files import write_text  # torch's import takes seconds

        if result.transcript is None:
            self._failed.append(result.file)
            print_error(result.error)
        elif self.paths is not None:
            text = render_transcript(
                result.file, result.transcript, self.written_as, has_words=self.has_words
            )
            write_text(text, self.paths[result.file])
        elif self.written_as == "json":
            values = values_of(result.file, result.transcript, has_words=self.has_words)
            self._values.append(values)
        elif self.written_as == "text":
            out.print(f"{result.file}: {result.transcript.text}", markup=False)
        else:
            text = render_transcript(result.file, result.transcript, self.written_as)
            out.print(text, markup=False, end="")

    def finish(self, *, num_files: int) -> None:
        """Prints the JSON value of all files, and exits with an error if a file failed."""
        # One value for all files, as a script reads it; none if there is no transcript at all.
        if self.written_as == "json" and self.paths is None and len(self._failed) < num_files:
            out.print(as_json(self._values), markup=False)
        # Each error was printed when it occurred, perhaps hours and many files before: named once
        # more.
        if self._failed and num_files > 1:
            names = ", ".join(f"`{file}`" for file in self._failed)
            print_error(f"{len(self._failed)} of {num_files} files were not transcribed: {names}")
        if self._failed:
            sys.exit(BAD_INPUT)


class TranscriptionProgress:
    """Shows a progress bar on a terminal, elsewhere a line now and then; the speed at the end."""

    def __init__(self, total_seconds: float) -> None:
        self.seconds_done = 0.0
        self._began = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=err,
            transient=True,
            redirect_stdout=False,  # results go where they are sent
            disable=not err.is_terminal,
        )
        self._task = self._bar.add_task("transcribing", total=total_seconds)
        self._lines = nullcontext() if err.is_terminal else StageReporter("transcribing")

    def __enter__(self) -> Self:
        self._bar.start()
        self._lines.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        self._lines.__exit__(kind, error, trace)

    def advance(self, seconds: float) -> None:
        """Adds seconds of audio that have been transcribed."""
        self.seconds_done += seconds
        self._bar.advance(self._task, seconds)

    def print_result(self, write: Callable[["Result"], None], result: "Result") -> None:
        """Calls `write` with the result while the bar is hidden."""
        # A line that is printed while the bar is drawn would be torn by it on the same terminal.
        self._bar.stop()
        write(result)
        self._bar.start()

    def summary(self, *, is_long: bool) -> None:
        """Prints the real-time factor, except to a script that transcribes a short file."""
        if not self.seconds_done or not (is_long or err.is_terminal):
            return
        seconds = time.monotonic() - self._began
        err.print(
            f"{self.seconds_done:.1f} s of speech in {seconds:.1f} s:"
            f" real-time factor {seconds / self.seconds_done:.4f}",
            markup=False,
        )
