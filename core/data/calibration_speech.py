"""Calibration speech: windows of audio files without their words, some of them held out.

Pruning without training looks at some minutes of speech. What it did not look at says how good the
result is, so one window in five is held out.

Shapes: B batch, M mel frames.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from lhotse.cut import Cut
from torch import Tensor

from core.data.audio import read_cut
from core.data.audio_decoding import CorpusError
from core.data.audio_stream import AudioStream
from core.features.kaldi import SAMPLE_RATE_HZ
from core.features.nemo import compute_features
from core.features.spec import FrontendSpec

WINDOW_SECONDS = 20.0
"""Longest window: as long as utterances are, and short enough for attention."""
SHORTEST_SECONDS = 0.5
LONGEST_CUT_SECONDS = 60.0
"""Longer utterances of a corpus are left out: attention would need their square."""
HELD_OUT_EVERY = 5
"""One window in so many is held out."""
LEAST_SECONDS = 20.0
"""Of calibration speech: with less, most layers would have more inputs than frames."""
BATCH_SECONDS = 60.0
SILENCE = 1e-3
"""Largest sample of a window that counts as silent: -60 dB of full scale."""

log = logging.getLogger(__name__)
Value = TypeVar("Value")
SpeechBatch = tuple[Float[Tensor, "_ _ mels"], Int[Tensor, " _"]]
"""Features of some windows, and their numbers of mel frames."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationSpeech:
    """Windows of speech as batches of features."""

    calibration: list[SpeechBatch]
    held_out: list[SpeechBatch]
    seconds: float
    """Of calibration speech."""
    held_out_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Window:
    file: Path
    begin: int
    """In samples at 16 kHz."""
    end: int


def read_calibration_speech(
    files: Sequence[Path], spec: FrontendSpec, *, seconds: float
) -> CalibrationSpeech:
    """Read windows from all files, evenly, until there is enough speech.

    A file that cannot be read is left out and logged; silent windows are left out, too.

    Args:
        files: audio of any sample rate.
        spec: features of the model.
        seconds: of calibration speech, at most; a quarter as much is held out beside it.

    Raises:
        CorpusError: if no file can be read, or there is too little speech in them.
    """
    needed = _with_held_out(seconds)
    windows, reasons = _plan(files, longest=min(WINDOW_SECONDS, max(2.0, needed / 8)))
    if not windows:
        raise CorpusError(
            reasons[0] if reasons else "`--audio` must name audio files, but names none instead."
        )
    return _divide(_read(_spread(windows, needed)), spec)


def read_calibration_cuts(
    cuts: Iterable[Cut], spec: FrontendSpec, *, seconds: float
) -> CalibrationSpeech:
    """Read utterances of a corpus, evenly, until there is enough speech.

    Args:
        cuts: utterances; their words are not looked at.
        spec: features of the model.
        seconds: of calibration speech, at most; a quarter as much is held out beside it.

    Raises:
        CorpusError: if a file cannot be read, or there is too little speech.
    """
    fitting = [cut for cut in cuts if SHORTEST_SECONDS <= cut.duration <= LONGEST_CUT_SECONDS]
    if not fitting:
        raise CorpusError(
            f"`--audio` must have utterances of {SHORTEST_SECONDS:g} to {LONGEST_CUT_SECONDS:g} s,"
            " but has none instead."
        )
    total = sum(cut.duration for cut in fitting)
    chosen = _evenly(fitting, _with_held_out(seconds) / total)
    return _divide((read_cut(cut) for cut in chosen), spec)


def _with_held_out(seconds: float) -> float:
    """Return how many seconds to read so that these remain after one window in five is held out."""
    return seconds * HELD_OUT_EVERY / (HELD_OUT_EVERY - 1)


def _divide(read: Iterable[Float[Tensor, " samples"]], spec: FrontendSpec) -> CalibrationSpeech:
    """Return features of the windows that are not silent, one in five of them held out."""
    waveforms = [wave for wave in read if wave.abs().max() > SILENCE]
    held_out = waveforms[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    calibration = [w for i, w in enumerate(waveforms) if (i + 1) % HELD_OUT_EVERY]
    found = _seconds(calibration)
    if found < LEAST_SECONDS or not held_out:
        silent = "" if waveforms else ", as all of it is silent"
        raise CorpusError(
            f"`--audio` and `--minutes` must give {_with_held_out(LEAST_SECONDS):g} s of speech or"
            f" more, but give {_seconds(waveforms):.1f} s{silent} instead; add audio, or raise"
            " `--minutes`."
        )
    return CalibrationSpeech(
        calibration=list(_batches(calibration, spec)),
        held_out=list(_batches(held_out, spec)),
        seconds=found,
        held_out_seconds=_seconds(held_out),
    )


def _plan(files: Sequence[Path], *, longest: float) -> tuple[list[_Window], list[str]]:
    """Return windows of at most `longest` seconds, and why files cannot be opened.

    Of a minute of speech they are shorter than of an hour, so that there are eight or more.
    """
    windows, reasons = [], []
    for file in files:
        try:
            num_samples = AudioStream(file).num_samples
        except (CorpusError, OSError) as error:
            reasons.append(str(error))
            log.warning("%s It is left out.", error)
            continue
        # 45 s are three windows of 15 s, not two of 20 and one of 5.
        count = math.ceil(num_samples / (longest * SAMPLE_RATE_HZ))
        ends = [num_samples * number // count for number in range(count + 1)]
        windows += [
            _Window(file=file, begin=begin, end=end)
            for begin, end in pairwise(ends)
            if end - begin >= SHORTEST_SECONDS * SAMPLE_RATE_HZ
        ]
    return windows, reasons


def _spread(windows: Sequence[_Window], seconds: float) -> list[_Window]:
    """Return windows of about so many seconds, at equal distances in the list.

    For example, of an hour in windows of 20 s, ten minutes are every sixth window.
    """
    total = sum(window.end - window.begin for window in windows) / SAMPLE_RATE_HZ
    return _evenly(windows, seconds / total)


def _evenly(values: Sequence[Value], share: float) -> list[Value]:
    """Return a share of some values, at equal distances."""
    count = min(len(values), math.ceil(len(values) * share))
    return [values[len(values) * number // count] for number in range(count)]


def _read(windows: Sequence[_Window]) -> Iterator[Float[Tensor, " samples"]]:
    for file, own in groupby(windows, key=lambda window: window.file):
        waveforms = []
        try:
            with AudioStream(file) as stream:
                waveforms = [stream.read(window.begin, window.end) for window in own]
                stream.report_faults()
        except (CorpusError, OSError) as error:
            log.warning("%s It is left out.", error)
            continue
        yield from waveforms


def _batches(waveforms: Sequence[Tensor], spec: FrontendSpec) -> Iterator[SpeechBatch]:
    """Yield features of windows of similar length, so that little is padding."""
    longest = BATCH_SECONDS * SAMPLE_RATE_HZ
    batch: list[Tensor] = []
    for waveform in sorted(waveforms, key=len, reverse=True):
        if batch and (len(batch) + 1) * len(batch[0]) > longest:
            yield _features(batch, spec)
            batch = []
        batch.append(waveform)
    if batch:
        yield _features(batch, spec)


def _features(waveforms: Sequence[Tensor], spec: FrontendSpec) -> SpeechBatch:
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    padded = torch.nn.utils.rnn.pad_sequence(list(waveforms), batch_first=True)
    features, num_frames = compute_features(spec, padded, lengths)
    return features, num_frames


def _seconds(waveforms: Sequence[Tensor]) -> float:
    return sum(map(len, waveforms)) / SAMPLE_RATE_HZ
