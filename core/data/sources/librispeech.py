"""The LibriSpeech layout: SPLIT/SPEAKER/CHAPTER/{ID.flac, SPEAKER-CHAPTER.trans.txt}.

Any corpus may lie so; audio is flac, ogg or wav. LibriSpeech itself is fetched by lhotse's recipe.
"""

import fnmatch
import tarfile
from collections.abc import Iterator
from pathlib import Path

from lhotse import CutSet, MonoCut, SupervisionSegment
from lhotse.recipes.librispeech import LIBRISPEECH, MINI_LIBRISPEECH, download_librispeech

from core.data.audio import (
    AUDIO_SUFFIXES,
    audio_below,
    is_audio,
    is_hidden,
    make_cut,
)
from core.data.audio_decoding import (
    CorpusError,
)

_TRANSCRIPTS = "*/*/*.trans.txt"


def split_names(root: Path) -> list[str]:
    """Folders of `root` that hold transcripts in this layout."""
    if not root.is_dir():
        return []
    return sorted(
        folder.name
        for folder in root.iterdir()
        if folder.is_dir() and not is_hidden(folder) and _transcripts(folder)
    )


def load_split(root: Path, split: str) -> CutSet:
    """Read one split: a cut an utterance, ordered by file and line.

    Raises:
        CorpusError: naming the first file that is missing, unreadable or without its other half.
    """
    cuts: dict[str, MonoCut] = {}
    transcribed = set()
    for transcript in _transcripts(root / split):
        audio = {file.stem: file for file in transcript.parent.iterdir() if is_audio(file)}
        for name, text in _lines(transcript):
            if name in cuts:
                raise CorpusError(f"`{transcript}` must name `{name}` once, but does so again.")
            cuts[name] = _make_utterance(transcript, name, text, audio)
            transcribed.add(audio[name])
    _check_all_transcribed(root / split, transcribed)
    return CutSet.from_cuts(cuts.values())


def fetch(root: Path, globs: list[str]) -> Path:
    """Bring the parts of LibriSpeech that the globs choose to `root`, unless they lie there.

    Raises:
        CorpusError: if a part cannot be brought.
    """
    # `corpus.root` may be the folder of the splits or the one above it, in which lhotse unpacks.
    home = root if split_names(root) else root / "LibriSpeech"
    here = set(split_names(home))
    needed = [part for glob in globs for part in _parts(glob)]
    absent = [part for part in dict.fromkeys(needed) if part not in here or _is_half(root, part)]
    if not absent:
        return home
    try:
        root.mkdir(parents=True, exist_ok=True)
        return Path(download_librispeech(root, dataset_parts=absent))
    except (OSError, tarfile.TarError) as error:  # URLError is an OSError
        raise CorpusError(
            f"`corpus.root` must hold LibriSpeech's {', '.join(absent)} or be where it can be"
            f" downloaded to, but `{root}` has none and the download failed ({error})."
        ) from error


def _parts(glob: str) -> list[str]:
    """Parts of LibriSpeech by that name, else of its miniature."""
    return fnmatch.filter(LIBRISPEECH, glob) or fnmatch.filter(MINI_LIBRISPEECH, glob)


def _is_half(root: Path, part: str) -> bool:
    """Whether an archive lacks lhotse's mark next to it: it was not unpacked to its end."""
    # lhotse writes `.completed` after the last file. A folder without an archive next to it is the
    # user's own, and is taken as it is.
    is_marked = (root / "LibriSpeech" / part / ".completed").is_file()
    return (root / f"{part}.tar.gz").exists() and not is_marked


def _transcripts(folder: Path) -> list[Path]:
    """Transcripts of a split, sorted, without hidden files such as macOS's `._NAME`."""
    files = (file for file in folder.glob(_TRANSCRIPTS) if not is_hidden(file))
    return sorted(f for f in files if not any(map(is_hidden, f.relative_to(folder).parents)))


def _lines(transcript: Path) -> Iterator[tuple[str, str]]:
    """Each line's utterance and its words, one space between two.

    Only a newline ends a line: `str.splitlines` would end one at U+2028 or U+0085, too.
    """
    try:
        lines = transcript.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise CorpusError(f"`{transcript}` must be UTF-8, but is not ({error}).") from error
    for line in lines:
        if line.strip():
            name, *words = line.split()
            yield name, " ".join(words)


def _make_utterance(transcript: Path, name: str, text: str, audio: dict[str, Path]) -> MonoCut:
    if not text:
        raise CorpusError(f"`{name}` must have words in `{transcript}`, but has none instead.")
    if name not in audio:
        raise CorpusError(
            f"`{name}` of `{transcript}` must have an audio file beside it"
            f" ({', '.join(AUDIO_SUFFIXES)}), but has none instead."
        )
    cut = make_cut(audio[name], name)
    spoken = SupervisionSegment(
        id=name,
        recording_id=name,
        start=0.0,
        duration=cut.duration,
        text=text,
        speaker=transcript.parent.parent.name,
    )
    cut.supervisions = [spoken]
    return cut


def _check_all_transcribed(folder: Path, transcribed: set[Path]) -> None:
    silent = [file for file in audio_below(folder) if file not in transcribed]
    if silent:
        more = f" ({len(silent) - 1} more like it)" if len(silent) > 1 else ""
        raise CorpusError(
            f"`{silent[0]}` must have a line in a transcript (*.trans.txt) beside it,"
            f" but has none instead{more}."
        )
