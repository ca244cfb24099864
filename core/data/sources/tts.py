"""Lines of text, spoken by eSpeak NG in noise, as a corpus in the LibriSpeech layout.

No voice is in two splits. The same lines and seeds sound the same, bit for bit.
"""

import importlib
import importlib.util
import io
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.random import Generator
from scipy.fft import next_fast_len
from scipy.signal import resample_poly

from core.data.audio_decoding import CorpusError
from core.data.sources import espeak
from core.features.kaldi import SAMPLE_RATE_HZ

# eSpeak's variants, without whispers, robots, whatever clips, and three (Alicia, Lee, shelby) that
# a recognizer of the others misheard twice as often as any. Relatives (f1, f2) share a split.
VOICES = {
    "train": """
        Andrea Andy Gene Gene2 Hugo Mario Mike Nguyen Storm Tweaky anika announcer antonio
        caleb ed edward edward2 f1 f2 f3 f4 f5 grandma gustave ian iven2 iven3 iven4 klatt3 klatt4
        klatt5 klatt6 m1 m2 m3 m4 m5 m6 m7 m8 marcelo max michel miguel mike2 pablo pedro quincy rob
        steph steph2 steph3 travis zac
    """,
    "dev": "Alex Annie Diogo Henrique adam belinda benjamin linda norbert robert",
    "test": "Denis Michael Reed aunty boris david grandpa john paul sandro victor",
}
ACCENTS = "en en-us en-gb-scotland en-gb-x-rp"
# Words a minute, and pitch on eSpeak's scale around each voice's own. Training has a wider range:
# it has to make up for the voices that it lacks.
PACES = {"train": (135, 216), "dev": (145, 196), "test": (145, 196)}
PITCHES = {"train": (10, 91), "dev": (30, 71), "test": (30, 71)}

_AT_ONCE = 500  # utterances a process speaks; a fresh one starts from the same state
# Speakers of different splits have different numbers; these also separate the splits' seeds.
_SPEAKERS_FROM = {"train": 1000, "dev": 2000, "test": 3000}


Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One utterance before it is spoken."""

    speaker: int
    voice: str
    text: str
    words_per_minute: int
    pitch: int
    """0 to 99, eSpeak's own scale around the voice's."""


def assign_voices(split: str, texts: Sequence[str], rng: Generator) -> list[Line]:
    """Give each sentence to a voice of the split; all voices speak about equally often."""
    voices, accents = VOICES[split].split(), ACCENTS.split()
    # 7 sentences and 3 voices: 0 0 0 1 1 2 2.
    speakers = sorted(i % len(voices) for i in range(len(texts)))
    return [
        Line(
            speaker=_SPEAKERS_FROM[split] + speaker,
            voice=f"{accents[rng.integers(len(accents))]}+{voices[speaker]}",
            text=text,
            words_per_minute=int(rng.integers(*PACES[split])),
            pitch=int(rng.integers(*PITCHES[split])),
        )
        for speaker, text in zip(speakers, texts, strict=True)
    ]


def synthesize_split(
    folder: Path, split: str, lines: Sequence[Line], *, seed: int, snr_db: Range
) -> None:
    """Speak, disturb and write one split.

    Args:
        folder: of the whole corpus.
        split: the split's folder, named as its voices are.
        lines: who says what.
        seed: draws voices' flutter, pauses, loudness and noise.
        snr_db: signal-to-noise ratios, from lowest to highest.

    Raises:
        CorpusError: if eSpeak NG is not installed or does not work.
    """
    seeds = [seed, _SPEAKERS_FROM[split]]
    for begin in range(0, len(lines), _AT_ONCE):
        part = lines[begin : begin + _AT_ONCE]
        # eSpeak has one seed for the group, as its state goes from sentence to sentence; noise has
        # one for each utterance.
        speech = _spoken(part, int(np.random.default_rng([*seeds, begin]).integers(2**31)))
        for number, (line, samples) in enumerate(zip(part, speech, strict=True), start=begin):
            rng = np.random.default_rng([*seeds, number])
            noisy = mix_with_noise(samples, rng.uniform(*snr_db), rng)
            _write(folder / split, line, number, noisy)


def mix_with_noise(speech: np.ndarray, snr_db: float, rng: Generator) -> np.ndarray:
    """Put speech between two pauses at some loudness, and noise of some colour under all of it."""
    # Root mean square of 0.03 to 0.1, where full scale is 1.
    loudness = 10 ** (rng.uniform(-30, -20) / 20)
    speech = speech * (loudness / max(_rms(speech), 1e-9))
    pauses = rng.uniform(0.1, 0.3, 2) * SAMPLE_RATE_HZ
    padded = np.pad(speech, (int(pauses[0]), int(pauses[1])))
    # A length with large prime factors makes the FFT slow; the surplus is cut off below.
    num_samples = next_fast_len(len(padded), real=True)
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    # Power falls as 1 / f**slope: 0 is white noise, 1 pink.
    slope = rng.uniform(0, 1)
    spectrum /= np.arange(1, len(spectrum) + 1) ** (slope / 2)
    noise = np.fft.irfft(spectrum, num_samples)[: len(padded)]
    # At 20 dB the root mean square of the noise is a tenth of the speech's.
    return padded + noise * (loudness * 10 ** (-snr_db / 20) / _rms(noise))


def _write(folder: Path, line: Line, number: int, samples: np.ndarray) -> None:
    chapter = folder / str(line.speaker) / "1"
    chapter.mkdir(parents=True, exist_ok=True)
    name = f"{line.speaker}-1-{number:06d}"
    encoded = io.BytesIO()  # a full disk is then an OSError of ours, not a silent half file
    soundfile.write(encoded, samples.clip(-1, 1), SAMPLE_RATE_HZ, "PCM_16", format="FLAC")
    (chapter / f"{name}.flac").write_bytes(encoded.getvalue())
    with (chapter / f"{line.speaker}-1.trans.txt").open("a", encoding="utf-8") as transcript:
        transcript.write(f"{name} {line.text.upper()}\n")


def _spoken(lines: Sequence[Line], seed: int) -> list[np.ndarray]:
    """Let a fresh eSpeak NG speak the lines; samples in [-1, 1] at 16 kHz."""
    order = _order(lines, seed)
    command = [sys.executable, "-P", espeak.__file__]  # -P: text.py lies beside it
    run = subprocess.run(  # noqa: S603 - this interpreter, our own file
        command, input=json.dumps(order).encode(), capture_output=True, check=False
    )
    if run.returncode != 0:
        reason = run.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise CorpusError(
            f"eSpeak NG must speak these lines, but ended with {run.returncode} instead ({reason})."
        )
    return _split_samples(run.stdout, len(lines))


def _order(lines: Sequence[Line], seed: int) -> dict[str, Any]:
    if importlib.util.find_spec("espeakng_loader") is None:
        raise CorpusError(
            "A spoken corpus must have eSpeak NG to speak it, but `espeakng_loader` is not"
            ' installed; `pip install "conformer-sweep[demo]"` installs it.'
        )
    loader = importlib.import_module("espeakng_loader")
    data = loader.get_data_path()
    for variant in sorted({line.voice.partition("+")[2] for line in lines}):
        # eSpeak would speak with its usual voice instead, in every split.
        if not Path(data, "voices", "!v", variant).is_file():
            raise CorpusError(f"eSpeak NG must have the voice `{variant}`, but `{data}` has not.")
    return {
        "library": loader.get_library_path(),
        "data": data,
        "seed": seed,
        "requests": [
            {
                "voice": line.voice,
                "text": line.text,
                "words_per_minute": line.words_per_minute,
                "pitch": line.pitch,
            }
            for line in lines
        ],
    }


def _split_samples(stream: bytes, count: int) -> list[np.ndarray]:
    utterances = []
    position = 0
    for _ in range(count):
        # 4 bytes with the number of samples, then 2 bytes a sample.
        size = 2 * int.from_bytes(stream[position : position + 4], "little")
        samples = np.frombuffer(stream, "<i2", size // 2, position + 4)
        position += 4 + size
        common = math.gcd(SAMPLE_RATE_HZ, espeak.SAMPLE_RATE_HZ)
        # 320 / 441: the greatest common divisor of 16,000 and 22,050 is 50.
        up, down = SAMPLE_RATE_HZ // common, espeak.SAMPLE_RATE_HZ // common
        utterances.append(resample_poly(samples / 32768.0, up, down))
    return utterances


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples)))) if len(samples) else 0.0
