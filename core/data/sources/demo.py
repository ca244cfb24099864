"""The demo corpus: commands to a house, spoken by eSpeak NG in noise, in the LibriSpeech layout.

No voice is in two splits. The same config speaks the same corpus, bit for bit.
"""

import json
from pathlib import Path

import numpy as np
from numpy.random import Generator

from core.config.trial import DemoConfig
from core.data.sources.tts import Line, assign_voices, synthesize_split
from core.files import atomic_folder

VERSION = 1  # raise it when any sample changes: the corpus is then spoken again

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


def speak(config: DemoConfig, folder: Path) -> Path:
    """Speak the corpus into `folder`, unless just this corpus is there already.

    Raises:
        CorpusError: if eSpeak NG is not installed or does not work.
    """
    mark = json.dumps({"version": VERSION, **config.model_dump()}, sort_keys=True)
    mark_file = folder / "demo.json"
    if mark_file.is_file() and mark_file.read_text(encoding="utf-8") == mark:
        return folder
    with atomic_folder(folder) as tmp_path:
        for split, lines in write_script(config).items():
            snr_db = (config.snr_low_db, config.snr_high_db)
            synthesize_split(tmp_path, split, lines, seed=config.seed, snr_db=snr_db)
        (tmp_path / "demo.json").write_text(mark, encoding="utf-8")
    return folder


def write_script(config: DemoConfig) -> dict[str, list[Line]]:
    """Choose who says what, split by split; training says every word that dev and test say."""
    rng = np.random.default_rng(config.seed)
    train = [_command(rng, config) for _ in range(config.train_utterances)]
    words = {word for text in train for word in text.split()}

    def draw_known() -> str:
        # At most 100 draws: a small training split may lack a word of nearly every sentence.
        draws = (_command(rng, config) for _ in range(100))
        covered = (text for text in draws if words.issuperset(text.split()))
        return next(covered, train[0])

    dev = [draw_known() for _ in range(config.dev_utterances)]
    test = [draw_known() for _ in range(config.test_utterances)]
    texts = {"train": train, "dev": dev, "test": test}
    return {split: assign_voices(split, texts[split], rng) for split in texts}


def _command(rng: Generator, config: DemoConfig) -> str:
    """A sentence, drawn again until it is one of those that may be spoken."""
    while True:
        text = _sentence(rng)
        if not config.commands or text.partition(" ")[0] in config.commands:
            return text


def _sentence(rng: Generator, rule: str = "SENTENCE") -> str:
    choice = GRAMMAR[rule][rng.integers(len(GRAMMAR[rule]))]
    return " ".join(_sentence(rng, w) if w.isupper() else w for w in choice.split())
