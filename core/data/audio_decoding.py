"""Decodes an audio file forwards, block by block, and believes no length that a header promises.

Files that pipes write do not know how long they are: FLAC without a number of samples, WAV with a
data size of 0 or of all ones. They are read to their end. A file that ends before the length that
its header promises was cut off, and is refused. Samples that are not numbers are set to 0, which is
reported with the file's name and the time.
"""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float

from core.safe_text import terminal_line

BLOCK = 1 << 20
"""Samples decoded at a time, of all channels together."""
MOST_FAULTY = 0.01
"""Share of a file's samples that may be other than numbers."""
_LOUDEST = 1e9
"""Largest amplitude that is taken for sound: its square is still a number in single precision."""
_DENSEST = 8192
"""Samples that a byte of a file can hold at most: FLAC of silence holds 5000."""
_STREAMED = 0x7FF0_0000
"""Of a WAV file's data size in bytes: programs write so much or more when they do not know it."""

log = logging.getLogger(__name__)


class CorpusError(ValueError):
    """Speech, a transcript or a vocabulary that cannot be used; the message names the file.

    What files say may stand in it, so characters that a terminal would obey are escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(terminal_line(message))


class ForwardFile(soundfile.SoundFile):  # type: ignore[misc]  # the library has no types
    """An audio file that is only read forwards.

    soundfile seeks after each read of a seekable file. That fails at the end of a file of unknown
    length, and some decoders begin anew after it and give other samples.
    """

    def seekable(self) -> bool:
        return False


@contextmanager
def open_forward(file: Path) -> Iterator[ForwardFile]:
    """Open a file for reading its samples in order.

    Raises:
        CorpusError: if it is not audio, or a decoder fails while it is open.
    """
    wav = _find_wav_data(file)
    try:
        if wav is not None and wav.is_unsized:
            with wav.open(file) as patched, ForwardFile(patched) as opened:
                yield opened
        else:
            with ForwardFile(file) as opened:
                yield opened
    except soundfile.LibsndfileError as error:
        raise unreadable_error(file, error) from error


def count_samples(file: Path, opened: ForwardFile) -> int:
    """Samples per channel that a file holds, counted where its header does not say.

    Raises:
        CorpusError: if a WAV file ends before the length that its header promises.
    """
    promised = _promised_samples(file, opened)
    if promised is None:
        return sum(map(len, _blocks(opened, None)))
    wav = _find_wav_data(file)
    if wav is not None and wav.is_cut_off:  # libsndfile promises what is there
        seconds = promised / opened.samplerate
        raise truncated_error(file, seconds * wav.promised / wav.held, seconds)
    return promised


def decode(file: Path) -> tuple[Float[np.ndarray, "samples channels"], int]:
    """All samples of a file in [-1, 1], and its rate in Hz.

    Raises:
        CorpusError: if it cannot be decoded, ends too early, or holds too much that is no number.
    """
    with open_forward(file) as opened:
        rate_hz, promised = int(opened.samplerate), _promised_samples(file, opened)
        # In blocks: one read of all that the header promises would allocate that much beforehand,
        # petabytes for a FLAC that a pipe wrote.
        samples = np.concatenate(list(_blocks(opened, promised)))
    if promised is not None and len(samples) < promised:
        raise truncated_error(file, promised / rate_hz, len(samples) / rate_hz)
    faults = Faults()
    samples = faults.mend(samples)
    faults.report(file, rate_hz)
    return samples, rate_hz


@dataclass(kw_only=True, slots=True)
class Faults:
    """Samples that are not numbers, or too large to be sound, in what was decoded so far."""

    num_rows: int = 0
    """Instants, each a sample of every channel."""
    num_samples: int = 0
    num_faulty: int = 0
    first: int = 0
    """Number of the first instant with a faulty sample."""

    def mend(self, samples: np.ndarray) -> np.ndarray:
        """Return the next samples with 0 in the place of faulty ones, which are counted."""
        is_sound = np.abs(samples) <= _LOUDEST  # false for NaN
        if not is_sound.all():
            if not self.num_faulty:
                # (samples,) or (samples, channels): a row is sound if all of its channels are.
                # argmin of booleans is the first that is false.
                rows = is_sound.reshape(len(samples), -1).all(axis=1)
                self.first = self.num_rows + int(rows.argmin())
            self.num_faulty += int(is_sound.size - is_sound.sum())
            samples = np.where(is_sound, samples, np.float32(0))
        self.num_rows += len(samples)
        self.num_samples += samples.size
        return samples

    def report(self, name: object, rate_hz: int, *, start_seconds: float = 0.0) -> None:
        """Log which samples were set to 0, if any.

        Args:
            name: of the file or utterance.
            rate_hz: of its samples.
            start_seconds: where in the file the first decoded sample lies.

        Raises:
            CorpusError: if more than `MOST_FAULTY` of the samples are faulty.
        """
        if not self.num_faulty:
            return
        when = f"{start_seconds + self.first / rate_hz:.3f} s"
        if self.num_faulty > MOST_FAULTY * self.num_samples:
            raise CorpusError(
                f"`{name}` must be audio of finite numbers, but {self.num_faulty} of its"
                f" {self.num_samples} samples, the first at {when}, are not instead."
            )
        what = (
            f"a sample that is not a finite number, at {when}; it is"
            if self.num_faulty == 1
            else f"{self.num_faulty} samples that are not finite numbers, the first at {when};"
            " they are"
        )
        log.warning("`%s` has %s set to 0.", name, what)


def unreadable_error(name: object, error: Exception) -> CorpusError:
    """The error for a file or an utterance that cannot be decoded."""
    reason = " ".join(str(error).split()).rstrip(".")
    return CorpusError(f"`{name}` must be readable audio, but is not ({reason[:200]}).")


def truncated_error(file: Path, promised: float, held: float) -> CorpusError:
    """The error for a file that holds fewer seconds than its header promises."""
    return CorpusError(
        f"`{file}` must be readable audio of {promised:.1f} s, but ends after {held:.1f} s instead."
    )


def _promised_samples(file: Path, opened: ForwardFile) -> int | None:
    """Samples per channel by the header; None where it says none, or what cannot be."""
    # libsndfile gives 2**63 - 1 for a FLAC without a number of samples; no file holds that many.
    promised = int(opened.frames)
    # MP3 has no length of its own: what libsndfile says comes from a tag that may be wrong.
    is_sized = opened.format != "MP3" and 0 < promised <= _DENSEST * file.stat().st_size
    return promised if is_sized else None


def _blocks(opened: ForwardFile, count: int | None) -> Iterator[np.ndarray]:
    """The next `count` samples, or all to the end, as (samples, channels)."""
    most, is_left = max(1, BLOCK // opened.channels), True
    while is_left:
        # Some decoders fail when they are asked for more than there is.
        size = most if count is None else min(most, count)
        block = opened.read(size, dtype="float32", always_2d=True)
        yield block
        count = None if count is None else count - len(block)
        # Fewer samples than were asked for: the file has ended.
        is_left = len(block) == size and count != 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _WavData:
    """Size of a WAV file's samples in bytes, as its header promises and as the file holds."""

    promised: int
    held: int
    """Bytes from the first sample to the end of the file."""
    size_at: int
    """Where the size is written."""
    size_bytes: int
    """Bytes that the size takes: 4, or 8 in RF64."""
    is_followed: bool
    """Whether the samples are followed by further chunks, to the end of the file."""

    @property
    def is_unsized(self) -> bool:
        """Whether libsndfile would find no samples, or none at all, though some are there."""
        is_wrong = self.promised == 0 or (self.size_bytes > 4 and self.is_streamed)
        return is_wrong and self.held > 0 and not self.is_followed

    @property
    def is_streamed(self) -> bool:
        return self.promised >= (_STREAMED if self.size_bytes == 4 else 1 << 62)

    @property
    def is_cut_off(self) -> bool:
        return self.held < self.promised and not self.is_streamed

    def open(self, file: Path) -> "_PatchedFile":
        """The file as if it knew its size."""
        # 4 bytes hold sizes below 4 GiB.
        size = min(self.held, 256**self.size_bytes - 1)
        patch = size.to_bytes(self.size_bytes, "little")
        return _PatchedFile(file, self.size_at, patch)


class _PatchedFile(io.FileIO):
    """A file some bytes of which are read as others."""

    def __init__(self, file: Path, begin: int, patch: bytes) -> None:
        super().__init__(file)
        self._begin, self._patch = begin, patch

    def readinto(self, buffer: Any, /) -> int:
        # Example: the size is in bytes 40 to 43, and 8 bytes are read from byte 42 on. The patch
        # then begins at offset -2, and its bytes 2 and 3 go to offsets 0 and 1.
        begin = self.tell()
        count = super().readinto(buffer) or 0
        view = memoryview(buffer).cast("B")
        for offset, value in enumerate(self._patch, start=self._begin - begin):
            if 0 <= offset < count:
                view[offset] = value
        return count


# `RIFF`, 4 bytes of size, `WAVE`; then chunks, each with a name, 4 bytes of size and content. In
# RIFF the size of the samples is in the 4 bytes before them. In RF64 these are all ones, and a
# chunk `ds64` holds sizes of 8 bytes: of the file, then of the samples. A file without samples can
# go on with other chunks, such as `LIST`.
def _find_wav_data(file: Path) -> _WavData | None:
    """Walk the chunks of a RIFF or RF64 file to its samples; None if there are none."""
    end = file.stat().st_size
    with file.open("rb") as opened:
        head = opened.read(12)
        if head[:4] not in (b"RIFF", b"RF64") or head[8:] != b"WAVE":
            return None
        size_at, size_bytes, long_size = 0, 4, 0
        for name, begin, size in _chunks(opened, 12, end):
            if name == b"ds64" and head[:4] == b"RF64":
                opened.seek(begin + 8)
                size_at, size_bytes = begin + 8, 8
                long_size = int.from_bytes(opened.read(8), "little")
            elif name == b"data":
                return _WavData(
                    promised=long_size if size_bytes == 8 else size,
                    held=end - begin,
                    size_at=size_at or begin - 4,
                    size_bytes=size_bytes,
                    is_followed=size == 0 and _ends_with_chunks(opened, begin, end),
                )
    return None


def _ends_with_chunks(opened: Any, begin: int, end: int) -> bool:
    """Whether all bytes to the end are chunks, and so no samples."""
    for _, content, size in _chunks(opened, begin, end):
        begin = content + size + size % 2
    return begin >= end


def _chunks(opened: Any, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Each chunk's name, where its content begins, and its size in bytes."""
    while begin + 8 <= end:
        opened.seek(begin)
        head = opened.read(8)
        name, size = head[:4], int.from_bytes(head[4:], "little")
        # A name is of printable letters: these bytes are samples, or damage.
        if not all(0x20 <= letter < 0x7F for letter in name):
            return
        yield name, begin + 8, size
        # Content is padded to an even size: a chunk of 5 bytes at byte 12 is followed at byte 26.
        begin += 8 + size + size % 2
