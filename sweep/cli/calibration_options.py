"""Options of the commands that look at some minutes of speech: which model, and which speech."""

import fnmatch
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from core.files import atomic_write
from core.outside_files import read_json
from core.stages import Announce

if TYPE_CHECKING:  # torch takes seconds that `--help` should not
    from core.bundle import Bundle
    from core.config.trial import CorpusConfig
    from core.data.calibration_speech import CalibrationSpeech
    from core.features.spec import FrontendSpec

CORPORA = ("demo", "librispeech")
"""Names of corpora, which mean what they name unless there is a file or folder of that name."""
TRAINING = "train*"
"""Training splits of a corpus."""
LIBRISPEECH_SPLIT = "train-clean-100"
"""Split of LibriSpeech to calibrate on."""

AnyRecognizer = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Model: folder of a bundle, DIR:TRIAL of a sweep or, with --audio, anything that"
        " `import` reads.",
    ),
]
Audio = Annotated[
    list[str] | None,
    typer.Option(
        help="Speech of the kind that the model will recognize: audio file, folder or corpus;"
        " repeatable.",
        metavar="SPEECH",
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option(help="Minutes of --audio to calibrate on, at most (default: 5).", min=0.5),
]
MINUTES = 5.0
Root = Annotated[str, typer.Option(help="Folder that holds LibriSpeech.")]
Tables = Annotated[
    Literal["fisher", "measured"] | None,
    typer.Option(
        help="Sensitivity tables: by backward passes (fisher, the default), or measured level by"
        " level."
    ),
]


def open_unpruned(model: str, folder: Path, *, announce: Announce) -> "tuple[Path, Bundle]":
    """Return the folder of a bundle and what is in it; another kind of model is imported first.

    Args:
        model: a bundle, a trial, or what `import` reads.
        folder: of the results, in which an imported model is written as `unpruned`.
        announce: called as each stage begins.

    Raises:
        BundleError, ImportingError: if there is no such model, or it is damaged.
        ConfigError: if the folder holds anything but results of this model.
    """
    from core import bundle
    from sweep.snapshot import model_path

    source = model_path(model)
    has_config = (source / "config.json").is_file()
    is_bundle = (source / "checksums.json").is_file()
    if not is_bundle and (not source.exists() or source.is_file() or has_config):
        source = _import_once(model, folder, announce)
    announce("reading the model")
    return source, bundle.load(source)


def _import_once(model: str, folder: Path, announce: Announce) -> Path:
    """Import a model into the folder of the results, unless an earlier run has done that."""
    from core import bundle
    from core.config.base import ConfigError
    from core.importers.load import import_model
    from core.one_shot.with_speech import IMPORTED, UNPRUNED

    marker, imported = folder / IMPORTED, folder / UNPRUNED
    identity = _identity(Path(model))
    is_new = not folder.exists() or not any(folder.iterdir())
    if not is_new and (not marker.is_file() or read_json(marker) != identity):
        raise ConfigError(
            f"`--out` must be a new folder, or one that was made of `{model}` as it is, but"
            f" `{folder}` was not; name a new folder."
        )
    if not bundle.is_whole(imported):
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(marker, json.dumps(identity))
        try:
            import_model(model, imported, announce=announce)
        except BaseException:
            if is_new:  # there is no such model, most often: nothing is left of it
                shutil.rmtree(folder, ignore_errors=True)
            raise
    return imported


def title_of(model: str, source: Path) -> str:
    """Return a model's name for titles: of a bundle that of its folder and the one around it."""
    return f"{source.parent.name}/{source.name}" if Path(model).is_dir() else model


def _identity(model: Path) -> dict[str, str | int]:
    """Return what tells a model from others: where it is, how large, and when it was changed."""
    if not model.exists():
        return {"model": str(model)}
    files = [model] if model.is_file() else [path for path in model.iterdir() if path.is_file()]
    states = [file.stat() for file in files]
    return {
        "model": str(model.absolute()),
        "bytes": sum(state.st_size for state in states),
        "changed": max((state.st_mtime_ns for state in states), default=0),
    }


def is_corpus(name: str) -> bool:
    """Return whether `--audio` names a corpus whose training split can be told from others.

    Any other folder is audio: that of one split, or of recordings without any order.
    """
    from core.data.sources import lhotse_manifests, librispeech

    path = Path(name)
    if not path.exists():
        return name in CORPORA
    splits = [*librispeech.split_names(path), *lhotse_manifests.split_names(path)]
    return path.is_dir() and bool(fnmatch.filter(splits, TRAINING))


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
    cuts = open_split(_training_corpus(corpora[0], root), spoken, "train")
    return read_calibration_cuts(cuts, spec, seconds=seconds)


def _training_corpus(name: str, root: str) -> "CorpusConfig":
    """Return a corpus of which the training split alone is wanted, without its transcripts."""
    from sweep.cli.corpus_option import corpus_config

    # With `labels = "teacher"` no transcript of the training split is read.
    config = corpus_config(name, root).model_copy(update={"labels": "teacher"})
    if name != "librispeech":
        return config
    # What is missing is downloaded: of this, minutes are enough.
    names = dict.fromkeys(("train", "dev", "test"), LIBRISPEECH_SPLIT)
    return config.model_copy(update=names)
