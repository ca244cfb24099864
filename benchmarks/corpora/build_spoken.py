r"""Builds the corpus `spoken` of the results from the texts of LJ Speech and LibriSpeech.

eSpeak NG speaks sentences of LJ Speech in training voices, and sentences of LibriSpeech's dev-clean
in held-out voices. docs/corpora.md says where both come from.
The texts are those of the published results to the letter; each result says its `--train` and
`--held-out`.

    python -m benchmarks.corpora.build_spoken \
        --lj metadata.csv --librispeech dev-clean.tar.gz --out FOLDER
"""

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.corpora.archives import SourceError, iterate_archive
from benchmarks.corpora.spoken_texts import speak
from core.data.audio_decoding import CorpusError

CHAPTERS = Path(__file__).with_name("dev_clean_chapters.txt")
LJ_FILE, LIBRISPEECH_FILE = "lj.txt", "librispeech-dev-clean.txt"
LJ_SENTENCES = 13_100

_LJ_LINE = re.compile(r"(LJ\d{3}-\d{4})\|[^|]*\|(.*)")
_WORD = re.compile(r"[A-Z]+(?:'[A-Z]+)*")
_TRANSCRIPT = re.compile(r"(?:.*/)?(\d+-\d+)\.trans\.txt")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--lj", type=Path, required=True, help="metadata.csv of LJ Speech, or its folder."
    )
    parser.add_argument(
        "--librispeech", type=Path, required=True, help="Folder or .tar.gz of dev-clean."
    )
    parser.add_argument("--out", type=Path, required=True, help="Folder of the new corpus.")
    parser.add_argument(
        "--train", type=int, default=LJ_SENTENCES, help="Training sentences at most."
    )
    parser.add_argument(
        "--held-out", type=int, default=600, help="Sentences of dev, and of test, at most."
    )
    parser.add_argument("--texts", type=Path, help="Folder that keeps the normalized texts.")
    args = parser.parse_args(arguments)
    try:
        _build(args)
    except (SourceError, CorpusError, OSError) as error:
        Console(stderr=True, soft_wrap=True).print(f"Error: {error}", markup=False)
        sys.exit(2)


def _build(args: argparse.Namespace) -> None:
    if args.train < 1 or args.held_out < 1:
        raise SourceError(
            "`--train` and `--held-out` must be at least 1, but are"
            f" {args.train} and {args.held_out} instead"
        )
    if args.out.exists():
        raise SourceError(f"`{args.out}` must be a new folder, but exists; give another `--out`")
    with tempfile.TemporaryDirectory() as folder:
        texts = args.texts or Path(folder)
        write_texts(args.lj, args.librispeech, texts)
        speak(texts, args.out, train=args.train, held_out=args.held_out)


def write_texts(lj: Path, librispeech: Path, folder: Path) -> None:
    """Write `lj.txt` and `librispeech-dev-clean.txt`, an utterance a line: `ID WORDS`.

    Args:
        lj: metadata.csv of LJ Speech, or the folder that holds it.
        librispeech: A folder that holds dev-clean's transcripts at any depth, or the archive.
        folder: Of the texts; made if it is missing.

    Raises:
        SourceError: if a source is missing, damaged, or lacks sentences.
    """
    texts = {
        LJ_FILE: list(lj_sentences(lj / "metadata.csv" if lj.is_dir() else lj)),
        LIBRISPEECH_FILE: list(dev_clean_sentences(librispeech)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in texts.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def lj_sentences(file: Path) -> Iterator[str]:
    """Yield `ID WORDS` for each line of metadata.csv, in upper case, A to Z and apostrophes.

    An apostrophe stays inside a word alone (DON'T, but DEBTORS). Nineteen sentences have a letter
    with an accent, which is taken for a space: `Müller` becomes M LLER, as in the published corpus.

    Raises:
        SourceError: if the file is not LJ Speech's.
    """
    count = 0
    for number, line in enumerate(_read(file).splitlines(), start=1):
        matched = _LJ_LINE.fullmatch(line)
        if matched is None:
            raise SourceError(
                f"`{file}` must have lines `LJ001-0001|text|normalized text`, but line {number} is"
                f" {line[:60]!r} instead"
            )
        count += 1
        yield f"{matched[1]} {' '.join(_WORD.findall(matched[2].upper()))}"
    if count != LJ_SENTENCES:
        raise SourceError(
            f"`{file}` must have the {LJ_SENTENCES} sentences of LJ Speech 1.1, but has {count}"
            " instead"
        )


def dev_clean_sentences(source: Path) -> Iterator[str]:
    """Yield the lines `ID WORDS` of dev-clean's chapters, in the order of the published corpus.

    Raises:
        SourceError: if a chapter is missing.
    """
    texts = dict(_folder_texts(source) if source.is_dir() else _archive_texts(source))
    for chapter in CHAPTERS.read_text(encoding="utf-8").splitlines():
        if chapter.startswith("#"):
            continue
        if chapter not in texts:
            raise SourceError(
                f"`{source}` must hold LibriSpeech's dev-clean, but has no {chapter}.trans.txt"
            )
        yield from texts[chapter].splitlines()


def _folder_texts(folder: Path) -> Iterator[tuple[str, str]]:
    for file in sorted(folder.rglob("*.trans.txt")):
        matched = _TRANSCRIPT.fullmatch(file.name)
        if matched is not None:
            yield matched[1], _read(file)


def _archive_texts(archive: Path) -> Iterator[tuple[str, str]]:
    for name, read in iterate_archive(archive):
        matched = _TRANSCRIPT.fullmatch(name)
        if matched is not None:
            yield matched[1], read().decode("utf-8", errors="replace")


def _read(file: Path) -> str:
    if not file.is_file():
        raise SourceError(f"`{file}` must be a file, but is missing")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(f"`{file}` must be UTF-8 text, but is not ({error})") from error


if __name__ == "__main__":
    main()
