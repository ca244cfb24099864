"""Corpora of manifests: lhotse's Shar folders, CutSets, recordings and supervisions; NeMo's.

SPLIT stands for the split's name; each may lie in any of these forms, with or without .gz:
SPLIT/cuts.000000.jsonl.gz with its archives (Shar); SPLIT.jsonl or
PREFIX_cuts_SPLIT.jsonl; PREFIX_recordings_SPLIT.jsonl with PREFIX_supervisions_SPLIT.jsonl;
NeMo's SPLIT.json or SPLIT_manifest.json. One manifest alone is a corpus of one split.
"""

import gzip
import re
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from lhotse import CutSet, MonoCut, MultiCut
from lhotse.cut import Cut

from core.data.audio_decoding import CorpusError
from core.data.manifests import nemo
from core.data.manifests.json_lines import Line, first_line, read_lines
from core.data.manifests.recordings import RecordingRecord
from core.data.manifests.records import (
    SupervisionRecord,
    check,
    find_audio,
    read_cut,
    to_recording,
    to_supervision,
)
from core.data.manifests.segments import Notes, one_utterance_a_cut
from core.data.manifests.shar import SharCuts
from core.data.manifests.sources import NOTHING, Allowed

Words = Literal["needed", "optional", "unread"]
"""Whether a split must have transcripts, may have them, or is read as if it had none."""

# Split `train`: cv_cuts_train.jsonl.gz, cuts_train.jsonl, train_manifest.jsonl or train.jsonl.
# Split `dev`: cv_recordings_dev.jsonl.gz. Split `test`: test_manifest.json or test.json.
_CUTS = re.compile(r"((.*_)?cuts_)?(?P<split>[^_].*?)(_manifest)?\.jsonl(\.gz)?")
_RECORDINGS = re.compile(r"(.*_)?recordings_(?P<split>.+?)\.jsonl(\.gz)?")
_NEMO = re.compile(r"(?P<split>.+?)(_manifest)?\.json(\.gz)?")
# The other half of a pair with recordings; a shard of a Shar folder that is the root itself.
_NO_SPLIT = re.compile(r"(.*_)?supervisions_.+|cuts\.\d+\..+")
# Bytes: the first object of a manifest of NeMo names its audio well before that.
_LOOKED_AT = 1 << 16
_CUT_TYPES = ("MonoCut", "MultiCut", "MixedCut", "Cut")


def split_names(root: Path) -> list[str]:
    """Splits of `root`, in whatever form."""
    return sorted(_places(root))


def load_split(
    root: Path, split: str, *, words: Words = "needed", allowed: Allowed = NOTHING
) -> CutSet:
    """Reads one split: a cut an utterance; those of a Shar folder are read as they are asked for.

    Args:
        root: the corpus's folder, or its one manifest.
        split: one of its splits.
        words: if they are not needed, recordings may go without supervisions.
        allowed: what the user's own settings let a manifest name besides files.

    Raises:
        CorpusError: naming what of a manifest cannot be used.
    """
    path = _places(root)[split]
    if path.is_dir():
        cuts = CutSet(SharCuts(folder=path, has_audio=True, allowed=allowed))
    else:
        cuts = CutSet.from_cuts(_read_manifest(path, words, allowed))
    return cuts.map(_wordless) if words == "unread" else cuts


def describe_split(root: Path, split: str, *, allowed: Allowed = NOTHING) -> CutSet:
    """Reads the same cuts without opening their audio, for all but `load_audio`.

    Raises:
        CorpusError: naming what of a manifest cannot be used.
    """
    path = _places(root)[split]
    if not path.is_dir():
        return load_split(root, split, allowed=allowed)
    # This pass is the one that warns of clipped utterances; passes with audio repeat silently.
    return CutSet(SharCuts(folder=path, has_audio=False, allowed=allowed, is_quiet=False))


def _wordless(cut: Cut) -> Cut:
    return cut.drop_supervisions()


def _places(root: Path) -> dict[str, Path]:
    """Each split's Shar folder or manifest; of several forms the first wins."""
    if root.is_file():
        return {_split_of(root) or root.name: root}
    if not root.is_dir():
        return {}
    places = {p.parent.name: p.parent for p in sorted(root.glob("*/cuts.*.jsonl*"))}
    for file in sorted(p for p in root.iterdir() if p.is_file()):
        split = None if file.name.startswith(".") else _split_of(file)
        if split and (".jsonl" in file.name or _is_nemo(file)):
            places.setdefault(split, file)
    return places


def _split_of(file: Path) -> str | None:
    """Returns the split that a file's name says it is, if any."""
    # In this order: `_CUTS` also matches cv_recordings_dev.jsonl, as the split cv_recordings_dev.
    for pattern in (_RECORDINGS, _CUTS, _NEMO):
        match = pattern.fullmatch(file.name)
        if match and not _NO_SPLIT.fullmatch(file.name):
            return match["split"]
    return None


def _is_nemo(file: Path) -> bool:
    """Whether a .json file is a manifest: most are something else."""
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as opened:
            begin = opened.read(_LOOKED_AT)
    except (OSError, EOFError, zlib.error):
        return False
    return any(f'"{key}"'.encode() in begin for key in nemo.AUDIO_KEYS)


def _read_manifest(path: Path, words: Words, allowed: Allowed) -> Iterator[Cut]:
    """A manifest's utterances; its first line tells what it is."""
    notes = Notes(file=path)
    first = first_line(path)
    if first is None:
        return
    kind = _kind(first)
    if kind == "nemo":
        yield from nemo.read_utterances(path, notes)
    elif kind == "cut":
        cuts = (read_cut(line, allowed=allowed) for line in read_lines(path))
        yield from one_utterance_a_cut((find_audio(cut, path.parent) for cut in cuts), notes)
    else:
        yield from one_utterance_a_cut(_join(path, words, allowed, notes), notes)
    notes.write()


def _kind(line: Line) -> Literal["nemo", "cut", "recording"]:
    """Tells the kind of a manifest's records by its first line.

    Raises:
        CorpusError: if they are none that can be read.
    """
    values = line.values
    if any(key in values for key in nemo.AUDIO_KEYS):
        return "nemo"
    if values.get("type") in _CUT_TYPES:
        return "cut"
    if "sources" in values or _RECORDINGS.fullmatch(line.file.name):
        return "recording"
    keys = ", ".join(f"`{key}`" for key in values if key.isprintable())
    raise CorpusError(
        f"{line.location}, must be a cut (`type`, `recording`, `supervisions`) or a recording"
        " (`sources`) of lhotse or an utterance of NeMo (`audio_filepath`, `text`), but has"
        f" {keys[:200] or 'nothing'} instead."
    )


def _join(path: Path, words: Words, allowed: Allowed, notes: Notes) -> Iterator[Cut]:
    """Joins recordings with their supervisions.

    A recording without any is left out, unless transcripts are not needed.
    """
    spoken = _supervisions(path, words)
    recordings: set[str] = set()
    silent: list[str] = []
    for number, line in enumerate(read_lines(path)):
        recording = to_recording(check(RecordingRecord, line, allowed=allowed))
        if recording.id in recordings:
            raise CorpusError(
                f"{line.location}, must name `{recording.id}` once, but does so again."
            )
        recordings.add(recording.id)
        supervisions = spoken.get(recording.id, [])
        if not supervisions and words == "needed":
            silent.append(recording.id)
            continue
        channels = recording.channel_ids
        kind = partial(MonoCut, channel=channels[0])
        if len(channels) > 1:
            kind = partial(MultiCut, channel=channels)
        cut = kind(
            # As lhotse names the cuts that it makes of recordings.
            id=f"{recording.id}-{number}",
            start=0.0,
            duration=recording.duration,
            recording=recording,
            supervisions=[to_supervision(record) for record in supervisions],
        )
        _check_channels(cut, path)
        yield find_audio(cut, path.parent)
    _note_left_out(recordings, silent, spoken, notes)


def _supervisions(path: Path, words: Words) -> dict[str, list[SupervisionRecord]]:
    """Reads supervisions by recording.

    Raises:
        CorpusError: if the manifest of it is missing and needed.
    """
    # cv_recordings_dev.jsonl.gz belongs to cv_supervisions_dev.jsonl.gz, packed alike.
    texts = path.with_name(path.name.replace("recordings_", "supervisions_"))
    if texts == path or not texts.exists():
        if words != "needed":
            return {}
        hint = "" if texts != path else "; name it recordings_SPLIT.jsonl"
        name = texts.name if texts != path else "supervisions_SPLIT.jsonl"
        raise CorpusError(
            f"`{path}` holds recordings and must have `{texts.with_name(name)}` beside it,"
            f" but has not{hint}."
        )
    spoken: dict[str, list[SupervisionRecord]] = {}
    for line in read_lines(texts):
        record = check(SupervisionRecord, line)
        spoken.setdefault(record.recording_id, []).append(record)
    return spoken


def _check_channels(cut: MonoCut | MultiCut, path: Path) -> None:
    """A mono recording's supervisions name its channel, too."""
    there = cut.recording.channel_ids
    for spoken in cut.supervisions:
        named = spoken.channel if isinstance(spoken.channel, list) else [spoken.channel]
        strange = [channel for channel in named if channel not in there]
        if strange:
            raise CorpusError(
                f"`{spoken.id}` of `{path}` must name a channel of its recording"
                f" ({', '.join(map(str, there))}), but names {strange[0]} instead."
            )


def _note_left_out(
    recordings: set[str],
    silent: list[str],
    spoken: dict[str, list[SupervisionRecord]],
    notes: Notes,
) -> None:
    """Says what of two manifests has nothing in the other."""
    if silent:
        notes.others.append(
            f"`{notes.file}` has {len(silent)} recordings in which nothing is transcribed, such as"
            f" `{silent[0]}`; they are left out."
        )
    strange = [name for name in spoken if name not in recordings]
    if strange:
        notes.others.append(
            f"`{notes.file}` lacks {len(strange)} recordings that its supervisions name, such as"
            f" `{strange[0]}`; what is said in them is left out."
        )
