"""What was heard, as people and players read it: text, JSON, SubRip and WebVTT. Pure."""

import html
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from core.config.base import ConfigError
from sweep.cli.output.json_text import as_json

if TYPE_CHECKING:  # torch takes seconds
    from core.inference.recognizer import SpokenWord, Transcript

Format = Literal["text", "json", "srt", "vtt"]
ENDINGS: dict[Format, str] = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt"}
LINE, LINES = 42, 2
"""Of a cue: what subtitlers hold to be read at a glance."""
PAUSE_SECONDS, LONGEST_SECONDS, SHORTEST_SECONDS = 0.8, 6.0, 1.0
"""A silence that ends a cue; how long one may last; and must, unless the next begins before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cue:
    """Words that are shown together."""

    start: float
    end: float
    text: str


def values_of(file: Path, transcript: "Transcript", *, has_words: bool) -> dict[str, Any]:
    """For scripts."""
    words = {"words": [asdict(word) for word in transcript.words]} if has_words else {}
    return {"file": str(file), "text": transcript.text, **words}


def render_transcript(
    file: Path, transcript: "Transcript", written_as: Format, *, has_words: bool = False
) -> str:
    """The content of a file that holds this transcript alone."""
    if written_as == "json":
        return f"{as_json(values_of(file, transcript, has_words=has_words))}\n"
    if written_as == "text":
        return f"{transcript.text}\n"
    cues = cues_of(transcript.words)
    if written_as == "srt":
        return "\n".join(
            f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{cue.text}\n"
            for number, cue in enumerate(cues, start=1)
        )
    shown = (
        f"\n{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n"
        f"{html.escape(cue.text, quote=False)}\n"
        for cue in cues
    )
    return "".join(("WEBVTT\n", *shown))


def cues_of(words: Sequence["SpokenWord"]) -> list[Cue]:
    """Words in groups that end at pauses and fit the screen; none overlaps the next."""
    cues = [
        Cue(
            start=group[0].start,
            end=max(group[-1].end, group[0].start + SHORTEST_SECONDS),
            text="\n".join(textwrap.wrap(" ".join(word.text for word in group), LINE)),
        )
        for group in _groups(words)
    ]
    following = [cue.start for cue in cues[1:]]
    ends = [min(cue.end, start) for cue, start in zip(cues, following, strict=False)]
    return [replace(cue, end=end) for cue, end in zip(cues, ends, strict=False)] + cues[-1:]


def places(
    files: Sequence[tuple[Path, Path]], folder: Path, written_as: Format
) -> dict[Path, Path]:
    """Where each file's transcript goes: files, and how they are called in the folder.

    Raises:
        ConfigError: naming two files whose transcripts would be one.
    """
    found: dict[Path, Path] = {}
    for file, name in files:
        place = folder / name.with_suffix(ENDINGS[written_as])
        if place in found:
            raise ConfigError(
                f"`--out` must give each file its own transcript, but `{found[place]}` and"
                f" `{file}` would both be `{place}`; transcribe them one after the other."
            )
        found[place] = file
    return {file: place for place, file in found.items()}


def check_format(written_as: Format, *, num_files: int, has_words: bool, has_folder: bool) -> None:
    """Refuse what no reader would understand.

    Raises:
        ConfigError: for subtitles of several files in one, and words' times in plain text.
    """
    assert written_as in get_args(Format)
    if written_as in {"srt", "vtt"} and num_files > 1 and not has_folder:
        raise ConfigError(
            f"`--format {written_as}` must be of one file, but there are {num_files} instead;"
            " `--out DIR` writes one each."
        )
    if has_words and written_as != "json":
        raise ConfigError(
            f"`--timestamps` must go with `--format json`, but the format is {written_as} instead;"
            " `srt` and `vtt` have times of their own."
        )


def _groups(words: Sequence["SpokenWord"]) -> Iterator[list["SpokenWord"]]:
    group: list[SpokenWord] = []
    for word in words:
        if group and not _fits(group, word):
            yield group
            group = []
        group.append(word)
    if group:
        yield group


def _fits(group: Sequence["SpokenWord"], word: "SpokenWord") -> bool:
    text = " ".join([*(each.text for each in group), word.text])
    return (
        word.start - group[-1].end < PAUSE_SECONDS
        and word.end - group[0].start <= LONGEST_SECONDS
        and len(textwrap.wrap(text, LINE)) <= LINES
    )


def _clock(seconds: float, point: str) -> str:
    thousandths = round(1000 * seconds)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"
