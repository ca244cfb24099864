"""Transcripts as text, JSON, SubRip and WebVTT. Pure."""

import html
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from core.config.base import ConfigError
from sweep.cli.output.json_text import as_json

if TYPE_CHECKING:  # torch's import takes seconds
    from core.inference.recognizer import SpokenWord, Transcript

Format = Literal["text", "json", "srt", "vtt"]
ENDINGS: dict[Format, str] = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt"}
LINE, LINES = 42, 2
"""Letters per line and lines per cue, by the conventions of subtitling."""
PAUSE_SECONDS, LONGEST_SECONDS, SHORTEST_SECONDS = 0.8, 6.0, 1.0
"""The pause that ends a cue, and the longest and the shortest time that a cue is shown.

A cue is shown for less than the shortest time if the next one begins before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cue:
    """Words that are shown together, from `start` to `end` in seconds."""

    start: float
    end: float
    text: str


def values_of(file: Path, transcript: "Transcript", *, has_words: bool) -> dict[str, Any]:
    """Returns a transcript as plain values, for scripts."""
    words = {"words": [asdict(word) for word in transcript.words]} if has_words else {}
    return {"file": str(file), "text": transcript.text, **words}


def render_transcript(
    file: Path, transcript: "Transcript", written_as: Format, *, has_words: bool = False
) -> str:
    """Returns the content of a file that holds this transcript alone."""
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
        # WebVTT reads `<` and `&` as markup; SubRip is plain text here.
        f"{html.escape(cue.text, quote=False)}\n"
        for cue in cues
    )
    return "".join(("WEBVTT\n", *shown))


def cues_of(words: Sequence["SpokenWord"]) -> list[Cue]:
    """Groups words into cues that end at pauses and fit the screen; no cue overlaps the next."""
    cues = [
        Cue(
            start=group[0].start,
            # "Yes" from 3.0 s to 3.2 s is shown until 4.0 s, or until the next cue begins, say at
            # 3.9 s.
            end=max(group[-1].end, group[0].start + SHORTEST_SECONDS),
            text="\n".join(textwrap.wrap(" ".join(word.text for word in group), LINE)),
        )
        for group in _groups(words)
    ]
    following = [cue.start for cue in cues[1:]]
    # The last cue has none that follows, so it keeps its end.
    ends = [min(cue.end, start) for cue, start in zip(cues, following, strict=False)]
    return [replace(cue, end=end) for cue, end in zip(cues, ends, strict=False)] + cues[-1:]


def transcript_paths(
    files: Sequence[tuple[Path, Path]], folder: Path, written_as: Format
) -> dict[Path, Path]:
    """Returns the output path of each audio file's transcript.

    Args:
        files: pairs of an audio file and its name relative to the output folder.
        folder: the output folder.
        written_as: the format, which gives the suffix.

    Raises:
        ConfigError: if two files would have the same transcript path.
    """
    sources: dict[Path, Path] = {}
    for file, name in files:
        # a.wav and a.flac would both be a.txt.
        output = folder / name.with_suffix(ENDINGS[written_as])
        if output in sources:
            raise ConfigError(
                f"`--out` must give each file its own transcript, but `{sources[output]}` and"
                f" `{file}` would both be `{output}`; transcribe them one after the other."
            )
        sources[output] = file
    return {file: output for output, file in sources.items()}


def check_format(written_as: Format, *, num_files: int, has_words: bool, has_folder: bool) -> None:
    """Refuses a combination of options that has no valid output.

    Raises:
        ConfigError: for subtitles of several files in one, and for word times outside of JSON.
    """
    assert written_as in get_args(Format)
    if written_as in {"srt", "vtt"} and num_files > 1 and not has_folder:
        raise ConfigError(
            f"`--format {written_as}` must have one audio file, but has {num_files} instead;"
            " `--out DIR` writes one transcript per file."
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
    text = " ".join([*(other.text for other in group), word.text])
    return (
        # "a" 0.0-0.4, "b" 0.5-0.9, "c" 1.9-2.3: the pause of 1.0 s ends the first cue after "b".
        word.start - group[-1].end < PAUSE_SECONDS
        and word.end - group[0].start <= LONGEST_SECONDS
        and len(textwrap.wrap(text, LINE)) <= LINES
    )


def _clock(seconds: float, point: str) -> str:
    # Rounded once, before the split: 59.9996 s is 00:01:00,000, never 00:00:60,000.
    thousandths = round(1000 * seconds)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"
