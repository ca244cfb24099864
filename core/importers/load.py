"""Import of published recognizers: a file, a folder or a hub's name in, a bundle out."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import torch

from core import bundle
from core.bundle import Bundle
from core.conformer.model import Conformer
from core.conformer.shape import Shape
from core.importers.nemo import from_nemo
from core.importers.nemo_decoders import Branch
from core.importers.parakeet import KINDS as PARAKEETS
from core.importers.parakeet import from_parakeet
from core.importers.safe_read import ImportingError, read_json
from core.importers.settings import Settings
from core.importers.torchaudio import from_torchaudio
from core.inference.sherpa_loader import choose_loader
from core.stages import Announce, be_silent

KINDS = "a `.nemo` archive, or a folder of transformers' Parakeet or of torchaudio's Conformer"
CONFIG = "config.json"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# All that is read here. Copies of the weights in other formats, which can be gigabytes, and code
# stay on the hub.
_WANTED = ("*.nemo", "*.json", "*.safetensors", "tokenizer.model")


def import_model(
    model: str,
    out: Path,
    *,
    for_sherpa: bool = False,
    branch: Branch = "all",
    announce: Announce = be_silent,
) -> Bundle:
    """Writes a published recognizer as a bundle, under a temporary name that is then changed.

    Args:
        model: a file, a folder or a name of the hub.
        out: the bundle, a new folder.
        for_sherpa: whether it is to read the features that sherpa-onnx computes for it, instead of
            those that it was trained on.
        branch: which decoders of a hybrid.
        announce: called as each stage begins.

    Raises:
        ExportError: if sherpa-onnx has no loader for it, and that is what it is for.
        ImportingError: in one line, if it is damaged or none that we know.
        OSError: if the disk is full or not writable.
    """
    if out.exists():
        raise ImportingError(f"`OUT` must be a new folder, but `{out}` is there.")
    announce("looking for the model")
    path = resolve_source(model)
    announce("reading the model")
    imported = read_model(path, branch)
    _check_branch(path, imported.model.shape, branch)
    if for_sherpa:
        imported = replace(imported, model=spec_for_sherpa(imported.model))
    announce("writing the bundle")
    bundle.save(out, imported.model, imported.tokenizer, imported.report)
    return imported


def read_model(path: Path, branch: Branch = "all") -> Bundle:
    """A recognizer, read by what it is.

    Args:
        path: a file or a folder.
        branch: which decoders of a hybrid.

    Raises:
        ImportingError: in one line, if it is damaged or none that we know.
    """
    if path.suffix == ".nemo" and path.is_file():
        return from_nemo(path, branch)
    if not (path / CONFIG).is_file():
        raise ImportingError(f"`{path}` must be {KINDS}, but is none.")
    settings = Settings(file=CONFIG, values=read_json(path / CONFIG))
    match settings.get("model_type"):
        case kind if kind in PARAKEETS:
            return from_parakeet(path, settings)
        case "torchaudio_conformer":
            return from_torchaudio(path, settings)
        case "wav2vec2-conformer":
            raise ImportingError(
                f"`{path}` must read mel features, but is a Wav2Vec2Conformer, which reads raw"
                " samples through seven convolutions over time; nothing here computes those."
            )
    raise settings.wrong("model_type", f"that of {KINDS}", settings.get("model_type"))


def _check_branch(path: Path, shape: Shape, branch: Branch) -> None:
    decoders = {"ctc": shape.has_ctc, "transducer": shape.transducer is not None}
    if not decoders.get(branch, True):
        raise ImportingError(
            f"`--decoder` must be a decoder of `{path.name}`, but is `{branch}` instead."
        )


def spec_for_sherpa(model: Conformer) -> Conformer:
    """Returns a model of the same weights that reads the features sherpa-onnx computes for it.

    Raises:
        ExportError: if sherpa-onnx has no loader for it.
    """
    has_transducer = model.transducer is not None
    frontend_spec = model.shape.frontend_spec.for_sherpa(has_transducer=has_transducer)
    if not has_transducer:
        # For its error alone: a model without a loader is refused before a bundle is written.
        choose_loader(frontend_spec, model.shape.vocabulary)
    # On `meta` no memory is taken, and `assign` makes the weights those of the given model, not
    # copies.
    with torch.device("meta"):
        other = Conformer(replace(model.shape, frontend_spec=frontend_spec))
    other.load_state_dict(model.state_dict(), assign=True)
    return other.requires_grad_().eval()


def resolve_source(model: str) -> Path:
    """A path as it is; of what is none, the copy of a model on Hugging Face's hub.

    Raises:
        ImportingError: if there is no such path, and no such model can be had.
    """
    # A folder `nvidia/parakeet` here wins over a model of that name on the hub: nothing is
    # downloaded for what exists.
    path = Path(model)
    if path.exists() or not _HUB_NAME.fullmatch(model):
        if not path.exists():
            raise ImportingError(f"`{model}` must be a file or a folder, but there is none.")
        return path.absolute()
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ImportingError(
            f"`{model}` must be a file or a folder, but there is none; for models of a hub,"
            " `pip install huggingface_hub`."
        )
    from huggingface_hub import snapshot_download  # noqa: PLC0415  # not needed for files

    try:
        folder = Path(snapshot_download(model, allow_patterns=list(_WANTED)))
    except Exception as error:  # noqa: BLE001  # of the network, of the hub, of its client
        reason = " ".join(str(error).split())[:200]
        raise ImportingError(
            f"`{model}` must be a file, a folder or a model of the hub, but: {reason}"
        ) from None
    archives = sorted(folder.glob("*.nemo"))
    return archives[0] if archives else folder
