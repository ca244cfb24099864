"""Audio files: what their headers promise, and their samples at 16 kHz.

Shapes: N samples.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from jaxtyping import Float
from lhotse import MonoCut, Recording
from lhotse.audio import AudioLoadingError, AudioSource, DurationMismatchError
from lhotse.audio.backend import audio_backend
from lhotse.cut import Cut
from torch import Tensor
from torchaudio.functional import resample as change_rate

from core.corpora.features import SAMPLE_RATE_HZ

AUDIO_SUFFIXES = (".flac", ".ogg", ".opus", ".wav")


class CorpusError(ValueError):
    """Speech, a transcript or a vocabulary that cannot be used; the message names the file.

    What files say may stand in it, so characters that a terminal would obey are escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(
            "".join(
                character
                if character.isprintable()
                else character.encode("unicode_escape").decode("ascii")
                for character in message
            )
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What a file says of itself before its samples are decoded."""

    sample_rate_hz: int
    num_samples: int


def check_file(file: Path) -> None:
    """Look whether there is anything to read.

    Raises:
        CorpusError: if the file is missing or has no bytes.
    """
    try:
        is_file, is_there = file.is_file(), file.exists()
    except OSError as error:  # a folder that may not be entered, a name of too many bytes
        raise CorpusError(f"`{file}` must be an audio file, but: {error.strerror}.") from None
    if not is_file:
        what = "no regular file" if is_there else "missing"
        raise CorpusError(f"`{file}` must be an audio file, but is {what} instead.")
    if file.stat().st_size == 0:
        raise CorpusError(f"`{file}` must hold speech, but is an empty file instead.")


def read_header(file: Path, *, num_channels: int = 1) -> Header:
    """Look at a file without decoding it.

    Raises:
        CorpusError: if it is missing, empty, not audio or has not so many channels.
    """
    check_file(file)
    try:
        info = soundfile.info(file)
    except soundfile.LibsndfileError as error:
        raise unreadable(file, error) from error
    if info.frames < 1:
        raise CorpusError(f"`{file}` must hold speech, but has no samples instead.")
    if info.channels != num_channels:
        rule = "one channel" if num_channels == 1 else f"{num_channels} channels"
        repair = "mix it down first" if num_channels == 1 else "make its manifest anew"
        raise CorpusError(f"`{file}` must have {rule}, but has {info.channels} instead; {repair}.")
    return Header(sample_rate_hz=info.samplerate, num_samples=info.frames)


def check_rate(name: object, sample_rate_hz: int, *, resample: bool) -> None:
    """Refuse a foreign sample rate by name, unless it may be changed.

    Raises:
        CorpusError: naming `name`.
    """
    if sample_rate_hz != SAMPLE_RATE_HZ and not resample:
        raise CorpusError(
            f"`{name}` must have {SAMPLE_RATE_HZ} samples a second, but has {sample_rate_hz}"
            " instead; set `corpus.resample = true` to have it changed."
        )


def read_file(file: Path, *, resample: bool = True) -> Float[Tensor, " samples"]:
    """Decode a file to samples in [-1, 1] at 16 kHz.

    Raises:
        CorpusError: if it cannot be decoded, or has another rate and `resample` is false.
    """
    header = read_header(file)
    check_rate(file, header.sample_rate_hz, resample=resample)
    try:
        samples, rate_hz = soundfile.read(file, dtype="float32")
    except soundfile.LibsndfileError as error:
        raise unreadable(file, error) from error
    return at_rate(torch.from_numpy(samples), rate_hz)


def read_cut(cut: Cut) -> Float[Tensor, " samples"]:
    """Decode an utterance to samples in [-1, 1] at 16 kHz.

    Raises:
        CorpusError: naming the file that cannot be decoded.
    """
    try:
        # lhotse's other backends run programs (sph2pipe in a shell, ffmpeg) on a file's name.
        with audio_backend("LibsndfileBackend"):
            samples = cut.load_audio()
    except Exception as error:  # decoders and lhotse's transforms share no class
        raise unreadable(source_of(cut), _origin(error)) from error
    return at_rate(torch.from_numpy(np.ascontiguousarray(samples[0])), cut.sampling_rate)


def _origin(error: BaseException) -> Exception:
    """What went wrong first; lhotse wraps it in words of its own, some of which cannot be shown."""
    while True:
        before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if before is None:
            break
        error = before
    if isinstance(error, AudioLoadingError | DurationMismatchError | AssertionError):
        return ValueError("it has fewer or other samples than its manifest says")
    return error if isinstance(error, Exception) else ValueError("it cannot be decoded")


def is_audio(file: Path) -> bool:
    return file.suffix.lower() in AUDIO_SUFFIXES


def cut_of(file: Path, name: str) -> MonoCut:
    """A file as one utterance, of which nobody says yet what is heard in it.

    Raises:
        CorpusError: if the file is missing, empty, not audio or not mono.
    """
    header = read_header(file)
    recording = Recording(
        id=name,
        sources=[AudioSource(type="file", channels=[0], source=str(file))],
        sampling_rate=header.sample_rate_hz,
        num_samples=header.num_samples,
        duration=header.num_samples / header.sample_rate_hz,
        channel_ids=[0],
    )
    return MonoCut(id=name, start=0.0, duration=recording.duration, channel=0, recording=recording)


def flac_of(waveform: Float[Tensor, " samples"]) -> bytes:
    """Samples at 16 kHz as a file that browsers play."""
    file = io.BytesIO()
    soundfile.write(file, waveform.numpy(), SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def files_of(cut: Cut) -> list[Path]:
    """Files that an utterance's audio is read from; none where it lies in an archive."""
    recording = getattr(cut, "recording", None)
    sources = recording.sources if recording is not None else []
    return [Path(source.source) for source in sources if source.type == "file"]


def source_of(cut: Cut) -> str:
    """Where an utterance's audio lies, for messages: its file, or its name in an archive."""
    return str(next(iter(files_of(cut)), cut.id))


def at_rate(
    waveform: Float[Tensor, " samples"], rate_hz: int, *, speed: float = 1.0
) -> Float[Tensor, " new_samples"]:
    """Bring samples to 16 kHz; played at `speed`, they last 1 / speed as long."""
    return change_rate(waveform, round(rate_hz * speed), SAMPLE_RATE_HZ)


def unreadable(name: object, error: Exception) -> CorpusError:
    """What is said of a file or an utterance that cannot be decoded."""
    reason = " ".join(str(error).split()).rstrip(".")
    return CorpusError(f"`{name}` must be readable audio, but is not ({reason[:200]}).")
