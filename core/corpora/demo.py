"""The demo corpus: commands to a house, spoken by eSpeak NG in noise, in the LibriSpeech layout.

No voice is in two splits. The same config speaks the same corpus, bit for bit.
"""

import importlib
import importlib.util
import io
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.random import Generator
from scipy.fft import next_fast_len
from scipy.signal import resample_poly

from core.config import DemoConfig
from core.corpora import espeak
from core.corpora.audio import CorpusError
from core.corpora.features import SAMPLE_RATE_HZ
from core.corpora.placing import placed

VERSION = 1  # raise it when anything that is heard changes: the corpus is then spoken again

# eSpeak's variants, without whispers, robots, whatever clips, and three (Alicia, Lee, shelby) that
# a recogniser of the others misheard twice as often as any. Relatives (f1, f2) share a split.
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
# Words a minute, and pitch on eSpeak's scale around each voice's own. Training hears a wider range:
# it has to make up for the voices it will never hear.
PACES = {"train": (135, 216), "dev": (145, 196), "test": (145, 196)}
PITCHES = {"train": (10, 91), "dev": (30, 71), "test": (30, 71)}

# A rule is a choice of sentences; a name in capitals is replaced by one of its own choices. No two
# words sound alike.
GRAMMAR = {
    "SENTENCE": (
        "turn SWITCH the ROOM DEVICE",
        "turn SWITCH the DEVICE",
        "MOVE the ROOM OPENING",
        "MOVE the OPENING",
        "set CLOCK to NUMBER UNIT",
        "play NUMBER songs",
        "play NUMBER songs in the ROOM",
        "make the ROOM DEGREE",
        "call PERSON",
        "stop the SOUND",
        "what time is it",
    ),
    "SWITCH": ("on", "off"),
    "ROOM": ("kitchen", "bedroom", "garden"),
    "DEVICE": ("light", "heater", "radio"),
    "MOVE": ("open", "close"),
    "OPENING": ("door", "window"),
    "CLOCK": ("timer", "alarm"),
    "NUMBER": ("three", "five", "seven", "ten", "twenty"),
    "UNIT": ("minutes", "hours"),
    "DEGREE": ("warmer", "cooler"),
    "PERSON": ("mother", "doctor"),
    "SOUND": ("music", "radio", "alarm"),
}

_AT_ONCE = 500  # utterances a process speaks; a fresh one starts from the same state
_SPEAKERS_FROM = {"train": 1000, "dev": 2000, "test": 3000}


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One utterance before it is spoken."""

    speaker: int
    voice: str
    text: str
    words_per_minute: int
    pitch: int
    """0 to 99, eSpeak's own scale around the voice's."""


def speak(config: DemoConfig, folder: Path) -> Path:
    """Speak the corpus into `folder`, unless just this corpus is there already.

    Raises:
        CorpusError: if eSpeak NG is not installed or does not work.
    """
    mark = json.dumps({"version": VERSION, **config.model_dump()}, sort_keys=True)
    mark_file = folder / "demo.json"
    if mark_file.is_file() and mark_file.read_text(encoding="utf-8") == mark:
        return folder
    with placed(folder) as beside:
        for split, lines in write_script(config).items():
            seed = [config.seed, _SPEAKERS_FROM[split]]
            _record(beside / split, lines, seed, config)
        (beside / "demo.json").write_text(mark, encoding="utf-8")
    return folder


def write_script(config: DemoConfig) -> dict[str, list[Line]]:
    """Choose who says what, split by split; training says every word that dev and test say."""
    chance = np.random.default_rng(config.seed)
    train = [_command(chance, config) for _ in range(config.train_utterances)]
    words = {word for text in train for word in text.split()}

    def draw_known() -> str:
        draws = (_command(chance, config) for _ in range(100))
        known = (text for text in draws if words.issuperset(text.split()))
        return next(known, train[0])

    dev = [draw_known() for _ in range(config.dev_utterances)]
    test = [draw_known() for _ in range(config.test_utterances)]
    texts = {"train": train, "dev": dev, "test": test}
    return {split: _cast(split, texts[split], chance) for split in texts}


def mixed(speech: np.ndarray, snr_db: float, chance: Generator) -> np.ndarray:
    """Put speech between two pauses at some loudness, and noise of some colour under all of it."""
    loudness = 10 ** (chance.uniform(-30, -20) / 20)
    speech = speech * (loudness / max(_rms(speech), 1e-9))
    pauses = chance.uniform(0.1, 0.3, 2) * SAMPLE_RATE_HZ
    padded = np.pad(speech, (int(pauses[0]), int(pauses[1])))
    num_samples = next_fast_len(len(padded), real=True)
    spectrum = np.fft.rfft(chance.standard_normal(num_samples))
    # Power falls as 1 / f**slope: 0 is white noise, 1 pink.
    slope = chance.uniform(0, 1)
    spectrum /= np.arange(1, len(spectrum) + 1) ** (slope / 2)
    noise = np.fft.irfft(spectrum, num_samples)[: len(padded)]
    return padded + noise * (loudness * 10 ** (-snr_db / 20) / _rms(noise))


def _command(chance: Generator, config: DemoConfig) -> str:
    """A sentence, drawn again until it is one of those that may be spoken."""
    while True:
        text = _sentence(chance)
        if not config.commands or text.partition(" ")[0] in config.commands:
            return text


def _sentence(chance: Generator, rule: str = "SENTENCE") -> str:
    choice = GRAMMAR[rule][chance.integers(len(GRAMMAR[rule]))]
    return " ".join(_sentence(chance, w) if w.isupper() else w for w in choice.split())


def _cast(split: str, texts: list[str], chance: Generator) -> list[Line]:
    """Give each sentence to a voice; all voices speak about equally often."""
    voices, accents = VOICES[split].split(), ACCENTS.split()
    speakers = sorted(i % len(voices) for i in range(len(texts)))
    return [
        Line(
            speaker=_SPEAKERS_FROM[split] + speaker,
            voice=f"{accents[chance.integers(len(accents))]}+{voices[speaker]}",
            text=text,
            words_per_minute=int(chance.integers(*PACES[split])),
            pitch=int(chance.integers(*PITCHES[split])),
        )
        for speaker, text in zip(speakers, texts, strict=True)
    ]


def _record(folder: Path, lines: list[Line], seed: list[int], config: DemoConfig) -> None:
    """Speak, disturb and write one split."""
    for begin in range(0, len(lines), _AT_ONCE):
        part = lines[begin : begin + _AT_ONCE]
        speech = _spoken(part, int(np.random.default_rng([*seed, begin]).integers(2**31)))
        for number, (line, samples) in enumerate(zip(part, speech, strict=True), start=begin):
            chance = np.random.default_rng([*seed, number])
            snr_db = chance.uniform(config.snr_low_db, config.snr_high_db)
            _write(folder, line, number, mixed(samples, snr_db, chance))


def _write(folder: Path, line: Line, number: int, samples: np.ndarray) -> None:
    chapter = folder / str(line.speaker) / "1"
    chapter.mkdir(parents=True, exist_ok=True)
    name = f"{line.speaker}-1-{number:06d}"
    encoded = io.BytesIO()  # a full disk is then an OSError of ours, not a silent half file
    soundfile.write(encoded, samples.clip(-1, 1), SAMPLE_RATE_HZ, "PCM_16", format="FLAC")
    (chapter / f"{name}.flac").write_bytes(encoded.getvalue())
    with (chapter / f"{line.speaker}-1.trans.txt").open("a", encoding="utf-8") as transcript:
        transcript.write(f"{name} {line.text.upper()}\n")


def _spoken(lines: list[Line], seed: int) -> list[np.ndarray]:
    """Let a fresh eSpeak NG speak the lines; samples in [-1, 1] at 16 kHz."""
    order = _order(lines, seed)
    command = [sys.executable, "-P", espeak.__file__]  # -P: text.py lies beside it
    run = subprocess.run(  # noqa: S603 - this interpreter, our own file
        command, input=json.dumps(order).encode(), capture_output=True, check=False
    )
    if run.returncode != 0:
        reason = run.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise CorpusError(
            f"eSpeak NG must speak the demo corpus, but ended with {run.returncode} instead"
            f" ({reason})."
        )
    return _split_samples(run.stdout, len(lines))


def _order(lines: list[Line], seed: int) -> dict[str, Any]:
    if importlib.util.find_spec("espeakng_loader") is None:
        raise CorpusError(
            "The demo corpus must have eSpeak NG to speak it, but `espeakng_loader` is not"
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
        size = 2 * int.from_bytes(stream[position : position + 4], "little")
        samples = np.frombuffer(stream, "<i2", size // 2, position + 4)
        position += 4 + size
        common = math.gcd(SAMPLE_RATE_HZ, espeak.SAMPLE_RATE_HZ)
        up, down = SAMPLE_RATE_HZ // common, espeak.SAMPLE_RATE_HZ // common
        utterances.append(resample_poly(samples / 32768.0, up, down))
    return utterances


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples)))) if len(samples) else 0.0
