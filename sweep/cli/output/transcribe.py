"""What `transcribe` says while it works and after: results on stdout, all else on stderr."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from sweep.cli.options import BAD_INPUT, complain, err, out
from sweep.cli.output.json_text import as_json
from sweep.cli.output.subtitles import Format, render_transcript, values_of

if TYPE_CHECKING:  # torch takes seconds
    from sweep.cli.transcribe_files import Result


class Telling:
    """Puts each result where it belongs.

    Args:
        written_as: the format of all.
        has_words: whether JSON tells words and their times.
        places: of each file's transcript; None prints them.
    """

    def __init__(
        self, written_as: Format, *, has_words: bool, places: dict[Path, Path] | None
    ) -> None:
        self.written_as, self.has_words, self.places = written_as, has_words, places
        self._values: list[dict[str, Any]] = []
        self._failed: list[Path] = []

    def tell(self, result: "Result") -> None:
        from sweep.cli.transcribe_files import write  # torch takes seconds

        if result.transcript is None:
            self._failed.append(result.file)
            complain(result.error)
        elif self.places is not None:
            how = {"has_words": self.has_words}
            text = render_transcript(result.file, result.transcript, self.written_as, **how)
            write(text, self.places[result.file])
        elif self.written_as == "json":
            values = values_of(result.file, result.transcript, has_words=self.has_words)
            self._values.append(values)
        elif self.written_as == "text":
            out.print(f"{result.file}: {result.transcript.text}", markup=False)
        else:
            text = render_transcript(result.file, result.transcript, self.written_as)
            out.print(text, markup=False, end="")

    def end(self, *, num_files: int) -> None:
        """Print what is one value, and end with an error if a file failed."""
        if self.written_as == "json" and self.places is None and self._is_worth_it(num_files):
            out.print(as_json(self._values), markup=False)
        if self._failed and num_files > 1:
            names = ", ".join(f"`{file}`" for file in self._failed)
            complain(f"{len(self._failed)} of {num_files} files were not transcribed: {names}")
        if self._failed:
            sys.exit(BAD_INPUT)

    def _is_worth_it(self, num_files: int) -> bool:
        return len(self._failed) < num_files


class Following:
    """A bar on a terminal while speech is heard, and how long it took."""

    def __init__(self, total_seconds: float) -> None:
        self.heard = 0.0
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
        self._task = self._bar.add_task("listening", total=total_seconds)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def advance(self, seconds: float) -> None:
        """So much more was heard."""
        self.heard += seconds
        self._bar.advance(self._task, seconds)

    def aside(self, tell: Callable[["Result"], None], result: "Result") -> None:
        """Print without drawing over the bar."""
        self._bar.stop()
        tell(result)
        self._bar.start()

    def summary(self, *, is_long: bool) -> None:
        """The real-time factor; a script that transcribes a short file is not told."""
        if not self.heard or not (is_long or err.is_terminal):
            return
        seconds = time.monotonic() - self._began
        err.print(
            f"{self.heard:.1f} s of speech in {seconds:.1f} s:"
            f" real-time factor {seconds / self.heard:.4f}",
            markup=False,
        )
