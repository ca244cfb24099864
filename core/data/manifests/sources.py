"""What audio a manifest may name: files, archives of Shar, and no more unless the user says so.

lhotse 1.33 would run a source of type `command` in a shell and open one of type `url`; whatever
begins with `pipe:` it runs as well. None of it is believed here.
"""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
from lhotse import Recording
from lhotse.audio import AudioSource

from core.data.audio import Header, read_header
from core.data.audio_decoding import CorpusError

Allowed = frozenset[str]
"""Of `corpus.allow`."""
NOTHING: Allowed = frozenset()

# Matches s3://bucket/a.wav, pipe:sox and a lone -; not -a.wav, nor C:/a.wav.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|pipe:|-$")
"""What lhotse would open as an address, a program or the standard input."""
_WEB = re.compile(r"https?://", re.IGNORECASE)
_LONGEST_PATH, _LONGEST_NAME = 2048, 255
"""Characters: Linux takes 4096 bytes and 255, a manifest's own folder included."""
_MOST_BYTES = 2 << 30
_SECONDS = 60
TOLERANCE_SECONDS = 0.025
"""By which lhotse lets a recording be shorter than its manifest says."""


def refusal_reason(kind: str, source: object, *, allowed: Allowed, is_shar: bool) -> str | None:
    """Why a source may not be read; None where it may.

    Args:
        kind: the source's type.
        source: what it is read from.
        allowed: what the user's own file allows.
        is_shar: whether archives of Shar are at hand.
    """
    if kind == "command":
        what, setting = "runs a program", "commands"
    elif kind == "url":
        what, setting = "opens an address", "urls"
    else:
        return _refusal_of_file(kind, source, is_shar=is_shar)
    if setting not in allowed:
        return (
            f"must name an audio file, but is a `{kind}` instead, which {what}; write its audio"
            f' into a file first, or set `corpus.allow = ["{setting}"]` in a file of your own'
        )
    if kind == "url" and not _WEB.match(str(source)):
        return f"must begin with http:// or https://, but is {str(source)!r:.100} instead"
    return None


def _refusal_of_file(kind: str, source: object, *, is_shar: bool) -> str | None:
    if kind == "shar":
        return None if is_shar else "must name an audio file, but is in an archive that is not here"
    if kind != "file":
        return f"must be of type `file`, but is of type {kind!r:.100} instead"
    if not isinstance(source, str) or not source:
        return f"must name an audio file, but names {source!r:.100} instead"
    if len(source) > _LONGEST_PATH or max(map(len, source.split("/"))) > _LONGEST_NAME:
        return f"must name an audio file, but names {source!r:.100} instead, which is too long"
    if _ADDRESS.match(source):
        return (
            f"must name an audio file, but is {source!r:.100} instead, which is a program or an"
            " address; write its audio into a file first"
        )
    return None


@dataclass(kw_only=True, slots=True)
class FileCheck:
    """Compares recordings with the files that they name; one after the other often is the same."""

    _last: Recording | None = None

    def compare(self, recording: Recording) -> None:
        """Looks at the headers.

        Raises:
            CorpusError: naming a file that is missing, no regular file, no audio, or of another
                rate, length or number of channels than its manifest says.
        """
        # Utterances cut from one recording share the object, and its file is looked at once.
        if recording is self._last:
            return
        for source in recording.sources:
            if source.type == "file":
                header = read_header(Path(source.source), num_channels=len(source.channels))
                if not recording.transforms:  # which may change both
                    _compare(recording, header, source.source)
        self._last = recording


def _compare(recording: Recording, header: Header, file: str) -> None:
    if header.sample_rate_hz != recording.sampling_rate:
        raise CorpusError(
            f"`{file}` must have {recording.sampling_rate} samples a second, as its manifest says,"
            f" but has {header.sample_rate_hz} instead; make the manifest anew."
        )
    if (recording.num_samples - header.num_samples) / header.sample_rate_hz > TOLERANCE_SECONDS:
        raise CorpusError(
            f"`{file}` must last {recording.duration:g} s, as its manifest says, but lasts"
            f" {header.num_samples / header.sample_rate_hz:g} s instead; make the manifest anew."
        )


class OutsideSource:
    """A program's output or an address's content, where the user allows it.

    Stands where lhotse (checked with 1.33) has an `AudioSource`: its own reading of these warns,
    caches and opens more than web addresses.
    """

    has_video = False

    def __init__(self, kind: str, channels: list[int], source: str) -> None:
        self.type, self.channels, self.source = kind, channels, source

    def load_audio(self, **piece: Any) -> np.ndarray:
        """Decodes a piece, as `AudioSource.load_audio` does."""
        content = _output(self.source) if self.type == "command" else _fetch(self.source)
        held = AudioSource(type="memory", channels=self.channels, source=content)
        samples: np.ndarray = held.load_audio(**piece)
        return samples


def _output(command: str) -> bytes:
    ended = subprocess.run(command, shell=True, capture_output=True, check=False)  # noqa: S602
    if ended.returncode:
        raise OSError(f"the program {command!r:.100} ended with code {ended.returncode}")
    return ended.stdout


def _fetch(address: str) -> bytes:
    try:
        with urlopen(address, timeout=_SECONDS) as opened:  # noqa: S310
            # One byte too many shows that there is more, whatever length the server states.
            content: bytes = opened.read(_MOST_BYTES + 1)
    except (URLError, OSError) as error:
        raise OSError(f"{address!r:.100} cannot be read: {error}") from None
    if len(content) > _MOST_BYTES:
        raise OSError(f"{address!r:.100} holds more than {_MOST_BYTES >> 30} GiB")
    return content
