"""`transcribe` at work: which files, one after the other, whatever becomes of the others."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.config.base import ConfigError
from core.data.audio import (
    audio_below,
    read_header,
)
from core.data.audio_decoding import (
    CorpusError,
)
from core.data.audio_stream import ENDINGS
from core.evaluation.word_alignment import Decoder
from core.files import temporary_path
from core.inference.long_audio import AudioSegment, transcribe_windows
from core.inference.recognizer import Transcript, transcript
from core.inference.windows import Windowing


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What became of a file."""

    file: Path
    transcript: Transcript | None
    error: str = ""
    """Why there is no transcript."""


def files_in(named: Iterable[Path]) -> list[tuple[Path, Path]]:
    """Files, and how each is called below what was named: folders are searched for audio, sorted.

    Raises:
        ConfigError: naming a folder without audio.
    """
    found: dict[Path, Path] = {}
    for path in named:
        if not path.is_dir():
            found.setdefault(path, Path(path.name))
            continue
        inside = audio_below(path, ENDINGS)
        if not inside:
            raise ConfigError(
                f"`{path}` must hold audio ({', '.join(sorted(ENDINGS))}), but holds none instead."
            )
        for file in inside:
            found.setdefault(file, file.relative_to(path))
    return list(found.items())


def seconds_in(files: Iterable[Path]) -> float:
    """How much there is to hear, as far as headers tell."""
    total = 0.0
    for file in files:
        try:
            header = read_header(file)
        except (CorpusError, OSError):
            continue  # it will be named when its turn comes
        total += header.num_samples / header.sample_rate_hz
    return total


def results(
    bundle: Any,
    files: Sequence[Path],
    *,
    windowing: Windowing,
    decoder: Decoder | None,
    advance: Callable[[float], None],
) -> Iterator[Result]:
    """Each file's, in order; `advance` is told of every stretch that was heard, in seconds."""

    def followed(parts: Iterable[AudioSegment]) -> Iterator[AudioSegment]:
        for part in parts:
            advance(part.seconds)
            yield part

    for file in files:
        parts = transcribe_windows(bundle.model, file, windowing=windowing)
        try:
            yield Result(file=file, transcript=transcript(bundle, followed(parts), decoder))
        except (CorpusError, OSError) as error:
            yield Result(file=file, transcript=None, error=_reason(file, error))


def write(text: str, place: Path) -> None:
    """Beside, then renamed: a transcript is whole or not there."""
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = temporary_path(place)
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(place)
    finally:
        beside.unlink(missing_ok=True)


def _reason(file: Path, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"`{file}` cannot be read: {error.strerror or error}"
    return str(error)
