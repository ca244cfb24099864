"""Many words, spoken: sentences of LJ speech in training voices, LibriSpeech's in held-out ones.

eSpeak NG speaks them into the LibriSpeech layout, in light noise. Dev and test share no voice with
training, nor with each other. The same numbers speak the same corpus, bit for bit:
`python -m benchmarks.corpora.spoken_texts --out FOLDER`.
"""

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console

from core.data.sources.tts import assign_voices, synthesize_split
from core.files import atomic_folder

TEXTS = Path(__file__).parents[3] / "shared" / "data" / "text"
SNR_DB = (20.0, 40.0)
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=Path, default=TEXTS, help="lj.txt and librispeech-*.txt")
    parser.add_argument("--train", type=int, default=13_100, help="sentences of LJ, at most")
    parser.add_argument("--held-out", type=int, default=600, help="of dev, and of test")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    speak(args.texts, args.out, train=args.train, held_out=args.held_out)


def speak(folder: Path, out: Path, *, train: int, held_out: int) -> None:
    """Speak the texts of `folder` into a corpus at `out`, which appears whole or not at all."""
    with atomic_folder(out) as beside:
        for split, texts in splits(folder, train, held_out).items():
            lines = assign_voices(split, texts, np.random.default_rng([SEED, len(texts)]))
            synthesize_split(beside, split, lines, seed=SEED, snr_db=SNR_DB)
            words = sum(len(text.split()) for text in texts)
            Console(stderr=True).print(f"{split}: {len(texts)} sentences, {words} words")


def splits(folder: Path, train: int, held_out: int) -> dict[str, list[str]]:
    """Sentences in an order of chance, so that fewer of them are like all."""
    chance = np.random.default_rng(SEED)
    lj, libri = (sentences(folder / name) for name in ("lj.txt", "librispeech-dev-clean.txt"))
    heard = [lj[place] for place in chance.permutation(len(lj))[:train]]
    others = [libri[place] for place in chance.permutation(len(libri))[: 2 * held_out]]
    return {"train": heard, "dev": others[::2], "test": others[1::2]}


def sentences(file: Path) -> list[str]:
    """The texts of lines `ID TEXT`."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return [line.split(maxsplit=1)[1].lower() for line in lines]


if __name__ == "__main__":
    main()
