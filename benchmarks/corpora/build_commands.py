"""Builds the corpus `commands` of the results from Google's Speech Commands.

Two to six recordings of single words by one speaker make an utterance: put end to end as they are,
each used once. Usage: `python -m benchmarks.corpora.build_commands SOURCE --out FOLDER`, where
SOURCE is the folder or the .tar.gz that docs/corpora.md names.

By default the utterances are those of the published results: the same speakers in the same splits
say the same words in the same order. Which of a speaker's recordings of a word stands where is
drawn anew, as the original draw is not known: the audio is not equal bit by bit.
"""

import argparse
import io
import json
import os
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import soundfile
from numpy.random import Generator
from rich.console import Console
from rich.progress import track

from benchmarks.corpora.archives import SourceError
from benchmarks.corpora.speech_commands import (
    SAMPLE_RATE_HZ,
    Recording,
    list_recordings,
    read_recordings,
)

WORDS = ("down", "eight", "five", "go", "left", "one", "right", "up", "zero")
PUBLISHED = Path(__file__).with_name("commands_utterances.tsv")
MIN_WORDS, MAX_WORDS = 2, 6
FIRST_NUMBER = 1000
SPEAKERS_FILE = "SPEAKERS.TXT"
BUILD_FILE = ".build.json"
SPLITS = {"train-clean": 364, "dev-clean": 37, "test-clean": 48}
"""Speakers of each split in the published results; other numbers are split in proportion."""
_AT_ONCE = 500  # speakers whose recordings are in memory together, about 200 MB

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeakerPlan:
    """All that one speaker says."""

    split: str
    number: int
    """The speaker's name in the LibriSpeech layout."""
    speaker: str
    """The speaker's name in Speech Commands."""
    utterances: tuple[tuple[Recording, ...], ...]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="Folder or .tar.gz of Speech Commands.")
    parser.add_argument("--out", type=Path, required=True, help="Folder of the new corpus.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of every draw (default 0).")
    parser.add_argument("--draw", action="store_true", help="Draw other utterances, too.")
    parser.add_argument(
        "--speakers", type=int, default=449, help="Speakers to draw with --draw (default 449)."
    )
    args = parser.parse_args(arguments)
    try:
        build(args.source, args.out, seed=args.seed, draw=args.draw, speakers=args.speakers)
    except (SourceError, OSError) as error:
        Console(stderr=True, soft_wrap=True).print(f"Error: {error}", markup=False)
        sys.exit(2)


def build(source: Path, out: Path, *, seed: int, draw: bool, speakers: int) -> None:
    """Build the corpus, or the rest of one that was interrupted.

    Args:
        source: Folder or archive of Speech Commands.
        out: Folder of the corpus: a new one, or one that the same arguments began.
        seed: Seed of every draw.
        draw: Draw new utterances instead of those of the published results.
        speakers: Number of speakers that `draw` takes; all if there are fewer.

    Raises:
        SourceError: if the source or an argument is wrong; speakers already written stay.
        OSError: if `out` cannot be written.
    """
    if seed < 0 or speakers < len(SPLITS):
        raise SourceError(
            f"`--seed` must be at least 0 and `--speakers` at least {len(SPLITS)}, but they are"
            f" {seed} and {speakers} instead"
        )
    console = Console(stderr=True)
    console.print(f"Listing {source} ...", markup=False)
    recordings = list_recordings(source, WORDS)
    if draw:
        plans = draw_plans(recordings, speakers, seed)
    else:
        plans = published_plans(PUBLISHED, recordings, seed)
    if not plans:
        raise SourceError(
            f"`{source}` must hold speakers of {PUBLISHED.name}, but holds none; `--draw` takes"
            " other speakers"
        )
    _claim(out, {"seed": seed, "draw": draw, "recordings": _count(plans)})
    _write_speakers(source, out, plans, console)
    _write_text(out / SPEAKERS_FILE, _speakers_table(plans))
    for line in _summary(plans, draw=draw):
        console.print(line)


def published_plans(file: Path, recordings: Iterable[Recording], seed: int) -> list[SpeakerPlan]:
    """Give each word of the published utterances one recording by its speaker.

    A word that the speaker has no further recording of is left out, and so is an utterance that
    falls below two words by it.

    Args:
        file: Lines of split, number, speaker and words, separated by tabs.
        recordings: All that there are.
        seed: Draws which of a speaker's recordings of a word comes first.
    """
    utterances: dict[tuple[str, str, str], list[list[str]]] = defaultdict(list)
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            split, number, speaker, words = line.split("\t")
            utterances[split, number, speaker].append(words.split())
    own = _by_speaker(recordings)
    plans = []
    for (split, number, speaker), texts in utterances.items():
        left: dict[str, list[Recording]] = defaultdict(list)
        for each in _shuffle(own[speaker], np.random.default_rng([seed, int(number)])):
            left[each.word].append(each)
        filled = (tuple(left[word].pop() for word in text if left[word]) for text in texts)
        whole = tuple(utterance for utterance in filled if len(utterance) >= MIN_WORDS)
        plan = SpeakerPlan(split=split, number=int(number), speaker=speaker, utterances=whole)
        plans += [plan] if whole else []
    return plans


def draw_plans(recordings: Iterable[Recording], speakers: int, seed: int) -> list[SpeakerPlan]:
    """Draw speakers, their splits and their utterances, by the law of the published corpus.

    Args:
        recordings: All that there are.
        speakers: Number of speakers; all that have an utterance's words if there are fewer.
        seed: Seed of the draw.

    Raises:
        SourceError: if fewer than three speakers could make an utterance.
    """
    own = _by_speaker(recordings)
    able = sorted(speaker for speaker, each in own.items() if len(each) >= MIN_WORDS)
    if len(able) < len(SPLITS):
        raise SourceError(
            f"The source must have {len(SPLITS)} speakers of {MIN_WORDS} recordings or more, one"
            f" for each split, but has {len(able)} instead"
        )
    rng = np.random.default_rng(seed)
    drawn = sorted(rng.permutation(able)[:speakers].tolist())
    splits = _shuffle(_split_names(len(drawn)), rng)
    return [
        SpeakerPlan(
            split=split,
            number=number,
            speaker=speaker,
            utterances=draw_utterances(own[speaker], np.random.default_rng([seed, number])),
        )
        for number, (speaker, split) in enumerate(zip(drawn, splits, strict=True), FIRST_NUMBER)
    ]


def draw_utterances(
    recordings: Sequence[Recording], rng: Generator
) -> tuple[tuple[Recording, ...], ...]:
    """Cut a speaker's recordings, in a random order, into utterances of 2 to 6 words.

    The law was read off the published corpus: each length is as likely as another, the last
    utterance takes what is left, and a single recording that would be left joins the utterance
    before it, or is dropped where that has six words. Of 7 recordings, a draw of 6 drops one.
    """
    left = _shuffle(recordings, rng)
    utterances = []
    while len(left) >= MIN_WORDS:
        length = min(int(rng.integers(MIN_WORDS, MAX_WORDS + 1)), len(left))
        if len(left) - length == 1 and length < MAX_WORDS:
            length += 1
        utterances.append(tuple(left[:length]))
        left = left[length:]
    return tuple(utterances)


def _split_names(speakers: int) -> list[str]:
    """A split for each speaker, in proportion to the published corpus, at least one in each."""
    total = sum(SPLITS.values())
    counts = {name: max(1, round(speakers * n / total)) for name, n in SPLITS.items()}
    counts["train-clean"] = speakers - counts["dev-clean"] - counts["test-clean"]
    return [name for name, count in counts.items() for _ in range(count)]


def _by_speaker(recordings: Iterable[Recording]) -> dict[str, list[Recording]]:
    own: dict[str, list[Recording]] = defaultdict(list)
    for each in sorted(recordings):
        own[each.speaker].append(each)
    return own


def _shuffle(items: Sequence[T], rng: Generator) -> list[T]:
    return [items[i] for i in rng.permutation(len(items))]


def _claim(out: Path, build_of: dict[str, int | bool]) -> None:
    """Note in a new folder what is built there, so that only the same build goes on with it."""
    note = out / BUILD_FILE
    text = json.dumps(build_of)
    if note.is_file():
        if note.read_text(encoding="utf-8") != text:
            raise SourceError(
                f"`{out}` must be a new folder or one of the same build, but was begun with other"
                " arguments or another source; give another `--out`"
            )
        for partial in out.glob(".[0-9]*.[0-9]*"):  # of a build that was killed
            shutil.rmtree(partial)
        return
    if out.exists() and any(out.iterdir()):
        raise SourceError(f"`{out}` must be a new folder, but holds files; give another `--out`")
    out.mkdir(parents=True, exist_ok=True)
    _write_text(note, text)


def _write_speakers(
    source: Path, out: Path, plans: Sequence[SpeakerPlan], console: Console
) -> None:
    """Write the speakers that are not there yet."""
    missing = [plan for plan in plans if not _folder(out, plan).is_dir()]
    for begin in range(0, len(missing), _AT_ONCE):
        part = missing[begin : begin + _AT_ONCE]
        wanted = [each for plan in part for utterance in plan.utterances for each in utterance]
        console.print(f"Reading {len(wanted)} recordings ...")
        samples = read_recordings(source, wanted)
        for plan in track(part, "Writing", console=console):
            _write_speaker(out, plan, samples)


def _folder(out: Path, plan: SpeakerPlan) -> Path:
    return out / plan.split / str(plan.number)


def _write_speaker(out: Path, plan: SpeakerPlan, samples: dict[Recording, np.ndarray]) -> None:
    """Write all utterances of a speaker: the folder appears whole or not at all."""
    folder = _folder(out, plan)
    partial = out / f".{plan.number}.{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "1").mkdir(parents=True)
    lines = []
    for number, utterance in enumerate(plan.utterances):
        name = f"{plan.number}-1-{number:04d}"
        encoded = io.BytesIO()  # a full disk is then an OSError of ours, not a silent half file
        joined = np.concatenate([samples[each] for each in utterance])
        soundfile.write(encoded, joined, SAMPLE_RATE_HZ, format="OGG", subtype="OPUS")
        (partial / "1" / f"{name}.ogg").write_bytes(encoded.getvalue())
        lines.append(f"{name} {' '.join(each.word for each in utterance).upper()}\n")
    (partial / "1" / f"{plan.number}-1.trans.txt").write_text("".join(lines), encoding="utf-8")
    folder.parent.mkdir(exist_ok=True)
    partial.rename(folder)


def _write_text(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def _speakers_table(plans: Iterable[SpeakerPlan]) -> str:
    rows = (f"{p.number} | ? | {p.split} | speech_commands {p.speaker}\n" for p in plans)
    return ";ID | SEX | SUBSET | NAME/INFO\n" + "".join(rows)


def _count(plans: Iterable[SpeakerPlan]) -> int:
    return sum(len(utterance) for plan in plans for utterance in plan.utterances)


def _summary(plans: Sequence[SpeakerPlan], *, draw: bool) -> list[str]:
    lines = []
    for split in SPLITS:
        own = [plan for plan in plans if plan.split == split]
        utterances = sum(len(plan.utterances) for plan in own)
        lines.append(f"{split}: {utterances} utterances by {len(own)} speakers")
    texts = [line for line in PUBLISHED.read_text().splitlines() if not line.startswith("#")]
    published: Counter[tuple[str, ...]] = Counter((*line.split("\t")[2:],) for line in texts)
    built: Counter[tuple[str, ...]] = Counter(
        (plan.speaker, " ".join(each.word for each in utterance))
        for plan in plans
        for utterance in plan.utterances
    )
    if not draw:
        equal = (built & published).total()
        lines.append(f"{equal} of {published.total()} published utterances have all their words")
    return lines


if __name__ == "__main__":
    main()
