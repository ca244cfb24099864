"""Options of the commands that look at some minutes of speech: which model, and which speech."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core.stages import Announce

if TYPE_CHECKING:  # torch takes seconds that `--help` should not
    from core.bundle import Bundle
    from core.data.calibration_speech import CalibrationSpeech
    from core.features.spec import FrontendSpec

CORPORA = ("demo", "librispeech")
"""Names of corpora, which mean what they name unless there is a file or folder of that name."""

AnyRecognizer = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Model: folder of a bundle, DIR:TRIAL of a sweep, or anything that `import` reads.",
    ),
]
Audio = Annotated[
    list[str] | None,
    typer.Option(
        help="Speech like that to recognize: audio file, folder or corpus; repeatable.",
        metavar="SPEECH",
    ),
]
Minutes = Annotated[
    float, typer.Option(help="Minutes of --audio to calibrate on, at most.", min=0.1)
]
Root = Annotated[str, typer.Option(help="Folder that holds LibriSpeech.")]


def is_corpus(name: str) -> bool:
    """Return whether `--audio` names a corpus: by its name, or as a folder without audio files."""
    from core.data.audio import audio_below
    from core.data.audio_stream import ENDINGS

    path = Path(name)
    if not path.exists():
        return name in CORPORA
    # A folder of manifests, or of archives of lhotse Shar, names audio that lies elsewhere.
    return path.is_dir() and not audio_below(path, ENDINGS) and any(path.rglob("*.json*"))


def open_unpruned(model: str, folder: Path, *, announce: Announce) -> "tuple[Path, Bundle]":
    """Return the folder of a bundle and what is in it; another kind of model is imported first.

    Args:
        model: a bundle, a trial, or what `import` reads.
        folder: of the results, in which an imported model is written as `unpruned`.
        announce: called as each stage begins.

    Raises:
        BundleError, ImportingError: if there is no such model, or it is damaged.
    """
    from core import bundle
    from core.importers.load import import_model
    from core.one_shot.with_speech import UNPRUNED
    from sweep.snapshot import model_path

    source = model_path(model)
    is_foreign = source.suffix == ".nemo" or not (source / "checksums.json").is_file()
    has_config = (source / "config.json").is_file()
    if is_foreign and (not source.exists() or source.is_file() or has_config):
        imported = folder / UNPRUNED
        if not bundle.is_whole(imported):
            import_model(model, imported, announce=announce)
        source = imported
    announce("reading the model")
    return source, bundle.load(source)


def read_speech(
    names: Sequence[str],
    spec: "FrontendSpec",
    *,
    seconds: float,
    root: str = "",
    spoken: Path,
) -> "CalibrationSpeech":
    """Return the speech that `--audio` names.

    Args:
        names: audio files, folders, or one corpus.
        spec: features of the model.
        seconds: of calibration speech, at most.
        root: of LibriSpeech.
        spoken: where the demo's speech is spoken to, if that is the corpus.

    Raises:
        ConfigError: if a corpus is named together with other speech.
        CorpusError: if nothing can be read, or there is too little speech.
    """
    from core.config.base import ConfigError
    from core.data.calibration_speech import read_calibration_cuts, read_calibration_speech
    from core.data.corpus import open_split
    from sweep.cli.corpus_option import corpus_config
    from sweep.cli.transcribe_files import find_audio_files

    corpora = [name for name in names if is_corpus(name)]
    if not corpora:
        files = [file for file, _ in find_audio_files(map(Path, names))]
        return read_calibration_speech(files, spec, seconds=seconds)
    if len(names) > 1:
        raise ConfigError(
            f"`--audio` must name one corpus or audio files, but names the corpus `{corpora[0]}`"
            f" and {len(names) - 1} more instead."
        )
    # With `labels = "teacher"` no transcript of the training split is read.
    config = corpus_config(corpora[0], root).model_copy(update={"labels": "teacher"})
    return read_calibration_cuts(open_split(config, spoken, "train"), spec, seconds=seconds)
