"""Audio files: what their headers promise, and their samples at 16 kHz.

Shapes: N samples.
"""

import io
from collections.abc import Callable, Collection
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

from core.data.audio_decoding import (
    CorpusError,  # everyone's way to it
    Faults,
    count_samples,
    decode,
    open_forward,
    unreadable_error,
)
from core.features.kaldi import SAMPLE_RATE_HZ

AUDIO_SUFFIXES = (".flac", ".ogg", ".opus", ".wav")


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """Rate and length of a file, from its header."""

    sample_rate_hz: int
    num_samples: int
    """Counted where the file does not say."""


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
    """Look at a file; its samples are decoded only where it does not say how many there are.

    Raises:
        CorpusError: if it is missing, empty, not audio, cut off or has not so many channels.
    """
    check_file(file)
    with open_forward(file) as opened:
        if opened.channels != num_channels:
            rule = "one channel" if num_channels == 1 else f"{num_channels} channels"
            repair = "mix it down first" if num_channels == 1 else "make its manifest anew"
            raise CorpusError(
                f"`{file}` must have {rule}, but has {opened.channels} instead; {repair}."
            )
        num_samples = count_samples(file, opened)
        rate_hz = int(opened.samplerate)
    if num_samples < 1:
        raise CorpusError(f"`{file}` must hold speech, but has no samples instead.")
    return Header(sample_rate_hz=rate_hz, num_samples=num_samples)


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
    samples, rate_hz = decode(file)
    return resample_to_16khz(torch.from_numpy(samples[:, 0].copy()), rate_hz)


# lhotse believes the length that a header promises; `decode` also reads what pipes wrote. If that
# gives other samples than the manifest says, lhotse's own tolerance and errors apply.
def read_cut(cut: Cut) -> Float[Tensor, " samples"]:
    """Decode an utterance to samples in [-1, 1] at 16 kHz.

    Raises:
        CorpusError: naming the file that cannot be decoded.
    """
    file = _whole_file(cut)
    if file is not None:
        samples, rate_hz = decode(file)
        if samples.shape == (cut.num_samples, 1) and rate_hz == cut.sampling_rate:
            return resample_to_16khz(torch.from_numpy(samples[:, 0].copy()), rate_hz)
    try:
        # lhotse's other backends run programs (sph2pipe in a shell, ffmpeg) on a file's name.
        with audio_backend("LibsndfileBackend"):
            loaded = cut.load_audio()[0]
    except Exception as error:  # decoders and lhotse's transforms share no class
        raise unreadable_error(source_name(cut), _origin(error)) from error
    faults = Faults()
    loaded = faults.mend(np.ascontiguousarray(loaded))
    begin = float(getattr(cut, "start", 0.0))
    faults.report(source_name(cut), cut.sampling_rate, start_seconds=begin)
    return resample_to_16khz(torch.from_numpy(loaded), cut.sampling_rate)


def _whole_file(cut: Cut) -> Path | None:
    """The file that an utterance is the whole of, with nothing changed; None for all others."""
    recording = cut.recording if isinstance(cut, MonoCut) else None
    if recording is None or recording.transforms or len(recording.sources) != 1:
        return None
    (source,) = recording.sources
    is_whole = cut.start == 0 and cut.num_samples == recording.num_samples
    return Path(source.source) if source.type == "file" and is_whole else None


def _origin(error: BaseException) -> Exception:
    """Returns the first error: lhotse wraps it in texts of its own, some not printable."""
    while True:
        # As in a traceback: the cause of `raise ... from`, else the error that was being handled,
        # unless `from None` hides it.
        before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if before is None:
            break
        error = before
    if isinstance(error, AudioLoadingError | DurationMismatchError | AssertionError):
        return ValueError("it has fewer or other samples than its manifest says")
    return error if isinstance(error, Exception) else ValueError("it cannot be decoded")


def is_audio(file: Path, suffixes: Collection[str] = AUDIO_SUFFIXES) -> bool:
    """Whether a name is that of an audio file; hidden files, such as macOS's `._NAME`, are none."""
    return file.suffix.lower() in suffixes and not is_hidden(file)


def is_hidden(file: Path) -> bool:
    """Whether a name begins with a dot."""
    return file.name.startswith(".")


def audio_below(folder: Path, suffixes: Collection[str] = AUDIO_SUFFIXES) -> list[Path]:
    """Audio files in a folder and the folders in it, sorted, without hidden files and folders."""
    return [
        file
        for file in sorted(folder.rglob("*"))
        if is_audio(file, suffixes)
        and not any(map(is_hidden, file.relative_to(folder).parents))
        and file.is_file()
    ]


def make_cut(file: Path, name: str) -> MonoCut:
    """Makes an utterance of a whole file, without a transcript.

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


def encode_flac(waveform: Float[Tensor, " samples"]) -> bytes:
    """Samples at 16 kHz as a file that browsers play."""
    file = io.BytesIO()
    soundfile.write(file, waveform.numpy(), SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def audio_files(cut: Cut) -> list[Path]:
    """Files that an utterance's audio is read from; none where it lies in an archive."""
    recording = getattr(cut, "recording", None)
    sources = recording.sources if recording is not None else []
    return [Path(source.source) for source in sources if source.type == "file"]


def source_name(cut: Cut) -> str:
    """Where an utterance's audio lies, for messages: its file, or its name in an archive."""
    return str(next(iter(audio_files(cut)), cut.id))


def resample_to_16khz(
    waveform: Float[Tensor, " samples"], rate_hz: int, *, speed: float = 1.0
) -> Float[Tensor, " new_samples"]:
    """Bring samples to 16 kHz; played at `speed`, they last 1 / speed as long.

    Raises:
        CorpusError: if the rate must change, and torchaudio cannot be imported.
    """
    # A second at 16 kHz and speed 0.9: its 16,000 samples are taken for samples at 14,400 Hz, of
    # which 16 kHz has 17,778.
    old_rate_hz = round(rate_hz * speed)
    if old_rate_hz == SAMPLE_RATE_HZ:
        return waveform
    return _load_resampler(old_rate_hz)(waveform, old_rate_hz, SAMPLE_RATE_HZ)


def _load_resampler(rate_hz: int) -> Callable[..., Tensor]:
    """Import torchaudio's resampler.

    Not at the top of the module: PyPI's torchaudio needs CUDA's libraries when it is imported, and
    fails next to a CPU-only torch.
    """
    try:
        from torchaudio.functional import resample  # noqa: PLC0415
    except (ImportError, OSError, RuntimeError) as error:  # absent, without CUDA, of another torch
        lines = str(error).splitlines() or [type(error).__name__]
        raise CorpusError(
            f"`torchaudio` must be importable to resample {rate_hz} Hz to {SAMPLE_RATE_HZ} Hz, but"
            f" is not: {lines[0][:200]}; install it from the index that torch was installed from,"
            " or resample the audio first."
        ) from error
    return resample
