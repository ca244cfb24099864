"""Any lhotse corpus: a folder of Shar, of CutSet manifests, or of recordings and supervisions.

SPLIT stands for the split's name; each may lie in any of these forms, with or without .gz:
SPLIT/cuts.000000.jsonl.gz with its archives beside it (Shar); SPLIT.jsonl or
PREFIX_cuts_SPLIT.jsonl; PREFIX_recordings_SPLIT.jsonl beside PREFIX_supervisions_SPLIT.jsonl.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from lhotse import CutSet, Recording, RecordingSet, SupervisionSet
from lhotse.cut import Cut

from core.corpora.audio import CorpusError, files_of

Words = Literal["needed", "optional", "unread"]
"""Whether a split must have transcripts, may have them, or is read as if it had none."""

_CUTS = re.compile(r"((.*_)?cuts_)?(?P<split>[^_].*?)\.jsonl(\.gz)?")
_RECORDINGS = re.compile(r"(.*_)?recordings_(?P<split>.+?)\.jsonl(\.gz)?")
_READ_ONLY = ("file", "memory", "shar")
_ADDRESS = re.compile(r"pipe:|[A-Za-z][A-Za-z0-9+.-]*://")
_NO_SPLIT = re.compile(r"(.*_)?supervisions_.+|cuts\.\d+\..+")


def split_names(root: Path) -> list[str]:
    """Splits of `root`, in whatever form."""
    return sorted(_places(root))


def load_split(root: Path, split: str, *, words: Words = "needed") -> CutSet:
    """Read one split: a cut an utterance; those of a Shar folder are read as they are asked for.

    Args:
        root: the corpus's folder.
        split: one of its splits.
        words: if they are not needed, recordings may go without supervisions.

    Raises:
        CorpusError: naming a manifest that cannot be read.
    """
    place = _places(root)[split]
    if place.is_dir():
        cuts = CutSet.from_shar(in_dir=place).map(_checked_sources)
        cuts = _one_utterance_a_cut(cuts, _described_shar(place))
    else:
        found = _read(place, words)
        cuts = _one_utterance_a_cut(found, found)
    return cuts.map(_wordless) if words == "unread" else cuts


def describe_split(root: Path, split: str) -> CutSet:
    """Read the same cuts without opening their audio, for all but `load_audio`."""
    place = _places(root)[split]
    if not place.is_dir():
        return load_split(root, split)
    cuts = _described_shar(place)
    return _one_utterance_a_cut(cuts, cuts)


def _wordless(cut: Cut) -> Cut:
    return cut.drop_supervisions()


def _described_shar(place: Path) -> CutSet:
    shards = sorted(str(p) for p in place.glob("cuts.*.jsonl*"))
    return CutSet.from_shar(fields={"cuts": shards}).map(_checked_sources)


def _checked_sources(cut: Cut) -> Cut:
    """Refuses a cut that would run a program or open an address when it is read."""
    for recording in _recordings_in(cut):
        for source in recording.sources:
            if source.type not in _READ_ONLY or _ADDRESS.match(str(source.source)):
                raise CorpusError(
                    f"`{cut.id}` must name an audio file, but has a source of type"
                    f" `{source.type}` instead, which may run a program or open an address;"
                    " write its audio into a file first."
                )
    return cut


def _recordings_in(item: object) -> Iterator[Recording]:
    """Recordings that reading a cut opens: its own, its tracks' and its impulse responses."""
    for track in getattr(item, "tracks", None) or ():
        yield from _recordings_in(track.cut)
    recording = item if isinstance(item, Recording) else getattr(item, "recording", None)
    if recording is not None and not isinstance(recording, str) and not hasattr(item, "tracks"):
        yield recording
    for holder in (item, recording):
        for transform in getattr(holder, "transforms", None) or ():
            yield from _recordings_in(getattr(transform, "rir", None))


def _places(root: Path) -> dict[str, Path]:
    """Each split's Shar folder or manifest; of several forms the first wins."""
    if not root.is_dir():
        return {}
    places = {p.parent.name: p.parent for p in sorted(root.glob("*/cuts.*.jsonl*"))}
    files = sorted(p for p in root.iterdir() if p.is_file())
    for file in files:
        match = _RECORDINGS.fullmatch(file.name) or _CUTS.fullmatch(file.name)
        if match and not _NO_SPLIT.fullmatch(file.name):
            places.setdefault(match["split"], file)
    return places


def _read(place: Path, words: Words) -> CutSet:
    texts = place.with_name(place.name.replace("recordings_", "supervisions_"))
    try:
        if not _RECORDINGS.fullmatch(place.name):
            cuts = CutSet.from_jsonl(place)
        elif words != "needed" and not texts.exists():
            cuts = CutSet.from_manifests(recordings=RecordingSet.from_jsonl(place))
        else:
            cuts = CutSet.from_manifests(
                recordings=RecordingSet.from_jsonl(place),
                supervisions=SupervisionSet.from_jsonl(texts),
            )
        return CutSet.from_cuts(_find_audio(_checked_sources(cut), place.parent) for cut in cuts)
    except FileNotFoundError as error:
        raise CorpusError(
            f"`{place}` must have `{error.filename}` beside it, but has not."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        if isinstance(error, CorpusError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise CorpusError(f"`{place}` must be a lhotse manifest, but is not ({reason}).") from error


def _find_audio(cut: Cut, folder: Path) -> Cut:
    """Take a relative path from the manifest's folder, where it is none from here."""
    recording = getattr(cut, "recording", None)
    if recording and files_of(cut) and not any(file.exists() for file in files_of(cut)):
        cut.recording = recording.with_path_prefix(folder)
    return cut


def _one_utterance_a_cut(cuts: CutSet, described: CutSet) -> CutSet:
    """Cut recordings with several utterances into these."""
    if any(len(cut.supervisions) > 1 for cut in described):
        return cuts.trim_to_supervisions(keep_overlapping=False)
    return cuts
