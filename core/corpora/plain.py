"""Folders of audio without a word beside it: SPLIT/ANYTHING/NAME.flac, or ogg, opus, wav.

Also how the LibriSpeech layout is read where none of its transcripts may be.
"""

from pathlib import Path

from lhotse import CutSet

from core.corpora.audio import cut_of, is_audio


def split_names(root: Path) -> list[str]:
    """Folders of `root` with audio somewhere in them."""
    if not root.is_dir():
        return []
    folders = (folder for folder in root.iterdir() if folder.is_dir())
    return sorted(folder.name for folder in folders if any(map(is_audio, folder.rglob("*"))))


def load_split(root: Path, split: str) -> CutSet:
    """Read one split: a cut a file, by its path below the split, in the order of paths.

    Raises:
        CorpusError: naming the first file that is empty, unreadable or not mono.
    """
    folder = root / split
    files = sorted(file for file in folder.rglob("*") if is_audio(file) and file.is_file())
    return CutSet.from_cuts(cut_of(file, file.relative_to(folder).as_posix()) for file in files)
