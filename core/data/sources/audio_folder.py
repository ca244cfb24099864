"""Folders of audio without transcripts: SPLIT/ANYTHING/NAME.flac, or ogg, opus, wav.

Also how the LibriSpeech layout is read where none of its transcripts may be.
"""

from pathlib import Path

from lhotse import CutSet

from core.data.audio import audio_below, is_hidden, make_cut


def split_names(root: Path) -> list[str]:
    """Folders of `root` with audio somewhere in them."""
    if not root.is_dir():
        return []
    folders = (f for f in root.iterdir() if f.is_dir() and not is_hidden(f))
    return sorted(folder.name for folder in folders if audio_below(folder))


def load_split(root: Path, split: str) -> CutSet:
    """Read one split: a cut a file, by its path below the split, in the order of paths.

    Raises:
        CorpusError: naming the first file that is empty, unreadable or not mono.
    """
    folder = root / split
    return CutSet.from_cuts(
        make_cut(file, file.relative_to(folder).as_posix()) for file in audio_below(folder)
    )
