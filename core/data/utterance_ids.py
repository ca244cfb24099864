"""Which utterance is which: fingerprints, names that are given twice, speech in two splits."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from lhotse.cut import Cut, MixedCut

from core.data.audio_decoding import CorpusError
from core.data.manifests.records import recordings_in

_LOOKED_AT = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Fingerprint:
    """Digests that differ between any two utterances."""

    whole: bytes
    """Name, length, words, and of its audio what it is a part of."""
    audio: bytes
    """Of the audio alone, where that lies in files; else of name, length and words."""


def fingerprint(cut: Cut, text: str) -> Fingerprint:
    """Takes a fingerprint; of each file the size and some bytes of the middle are read.

    What an ordinary mono file has no use for (begin, channel, changes) is left out where it is not,
    so that corpora keep the digests they always had.
    """
    # `whole` tells two utterances apart; `audio` tells that two are the same speech, and so has
    # neither name nor words in it unless there is no file to look at.
    head = f"{cut.id}\t{cut.duration:.6f}\t{cut.sampling_rate}\t{text}\n".encode()
    part = _part(cut)
    files = b"".join(_middle(file) for file in files_in(cut))
    length = f"{cut.duration:.3f}".encode()
    return Fingerprint(
        whole=head + part + files, audio=_short(length + part + files if files else head)
    )


def files_in(cut: Cut) -> list[Path]:
    """All files that reading an utterance opens."""
    return [
        Path(source.source)
        for recording in recordings_in(cut)
        for source in recording.sources
        if source.type == "file"
    ]


def _part(cut: Cut) -> bytes:
    """Where in its recordings an utterance lies, and how they are changed."""
    tracks = cut.tracks if isinstance(cut, MixedCut) else ()
    values: list[object] = [
        [track.offset, track.snr, track.cut.start, track.cut.duration] for track in tracks
    ]
    if not tracks and cut.start > 0:
        values.append(["start", round(cut.start, 6)])
    for recording in recordings_in(cut):
        if recording.num_channels > 1:
            values.append(["channel", cut.channel if not tracks else recording.channel_ids])
        for change in recording.transforms or ():
            plain = {k: v for k, v in vars(change).items() if isinstance(v, str | int | float)}
            values.append([type(change).__name__, plain])
    return json.dumps(values, sort_keys=True).encode() if values else b""


def _middle(file: Path) -> bytes:
    size = file.stat().st_size
    with file.open("rb") as opened:
        # Headers of a corpus are alike, and to read files whole would mean to read the whole
        # corpus.
        opened.seek(size // 2)
        return size.to_bytes(8, "little") + opened.read(_LOOKED_AT)


def _short(content: bytes) -> bytes:
    """Eight bytes: millions of them fit into memory, and no two meet by accident."""
    # Probability that any two of n meet: n**2 / 2**65, 3e-8 for a million.
    return hashlib.blake2b(content, digest_size=8).digest()


@dataclass(kw_only=True, slots=True)
class NameCheck:
    """The names of all utterances that are read together."""

    _seen: set[bytes] = field(default_factory=set)

    def add(self, name: str, split: Path) -> None:
        """Takes another name.

        Raises:
            CorpusError: if it is there already.
        """
        short = _short(name.encode())
        if short in self._seen:
            raise CorpusError(
                f"`{name}` of `{split}` must be the name of one utterance, but is that of two"
                " instead; each would count twice."
            )
        self._seen.add(short)


@dataclass(kw_only=True, slots=True)
class SharedSpeech:
    """Speech that is trained on, and what of it stands in another split."""

    trained: set[bytes] = field(default_factory=set)
    count: int = 0
    first: str = ""

    def compare(self, name: str, audio: bytes) -> None:
        """Counts an utterance of another split if its audio is trained on."""
        if audio in self.trained:
            self.count += 1
            self.first = self.first or name
