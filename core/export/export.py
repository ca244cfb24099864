"""Export of a bundle as a folder that other programs load, verified before it appears.

Targets: `bundle`, a copy; `onnx`, a graph for any runtime; `sherpa`, a graph with the files that
sherpa-onnx loads; `onnx-asr`, the files that onnx-asr loads; `transformers`, the files that its
Parakeet classes load.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core import bundle
from core.bundle import Bundle
from core.conformer.shape import Shape
from core.data.audio import check_file
from core.data.tokenizer import BLANK, FILE_NAME
from core.digests import bundle_digest
from core.export import onnx_asr, sherpa_transducer, usage_snippets
from core.export.model_card import FEATURES, Exported, card_text
from core.export.onnx.conversion import DATA, LARGEST_INLINE, OPSET
from core.export.onnx.transducer import GRAPHS
from core.export.parakeet import (
    EXTRACTOR,
    GENERATION,
    PROCESSOR,
    TOKENS_CONFIG,
    class_name,
    count_added,
)
from core.export.sherpa import SPEC, TOKENS, needs_sherpa
from core.export.targets import (
    ExportJob,
    write_bundle,
    write_for_onnx_asr,
    write_onnx,
    write_sherpa,
    write_transformers,
)
from core.export.transformers_check import needs_transformers
from core.files import atomic_folder
from core.importers.parakeet import CONFIG
from core.importers.tokenizer import FAST
from core.inference.exported_model import FEATURES_FILE, FLOAT, INT8
from core.inference.graph_interface import ExportError, needs_extra
from core.stages import Announce, be_silent

Target = Literal["bundle", "onnx", "sherpa", "onnx-asr", "transformers"]
_GRAPHS = ("onnx", "sherpa", "onnx-asr")
_NEEDS: Mapping[Target, Callable[[], None]] = {
    "sherpa": needs_sherpa,
    "onnx-asr": onnx_asr.needs_onnx_asr,
    "transformers": needs_transformers,
}
"""Targets that are verified on audio, and the check that their runtimes are installed."""
CARD = "README.md"
_PURPOSES = {
    FLOAT: "the graph, in floats",
    INT8: "the same in 8-bit integers",
    f"{FLOAT}{DATA}": f"the weights of `{FLOAT}`, which must stay in one folder with it",
    f"{INT8}{DATA}": f"the weights of `{INT8}`, which must stay in one folder with it",
    TOKENS: "each token's symbol and id",
    SPEC: "the loader to call, and its arguments",
    FEATURES_FILE: "the features that the graph reads, and the kind of its front end",
    FILE_NAME: "the tokenizer, a SentencePiece model",
    "report.json": "measurements of the model, and its configuration",
    "shape.json": "the sizes of the model's parts",
    "model.safetensors": "the weights",
    "checksums.json": "SHA-256 of the bundle's files",
    CONFIG: "the sizes, as transformers names them",
    EXTRACTOR: "the features",
    PROCESSOR: "features and tokens together",
    FAST: "the tokenizer, as transformers reads it",
    TOKENS_CONFIG: "its class, and the blank's name",
    GENERATION: "the token that a search begins with, and others for it",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportResult:
    """A finished export, and how it was verified."""

    folder: str
    to: str
    files: tuple[str, ...]
    verified: tuple[str, ...]


def export(
    source: Path,
    out: Path,
    to: Target,
    *,
    is_int8: bool = False,
    verify_on: Sequence[Path] = (),
    inline_bytes: int = LARGEST_INLINE,
    announce: Announce = be_silent,
) -> ExportResult:
    """Write an export; the folder appears whole or not at all.

    Args:
        source: a bundle.
        out: a new folder.
        to: the target.
        is_int8: also in 8-bit integers.
        verify_on: audio on which sherpa-onnx, onnx-asr or transformers must give the transcripts of
            `transcribe`; by default noise, and speech of eSpeak NG if it is installed.
        inline_bytes: the most bytes of weights in a graph's own file.
        announce: called with what begins.

    Raises:
        BundleError: if the source is no complete bundle.
        CorpusError: naming a file to verify on that cannot be read.
        ExportError: if a package is not installed, the export differs from the model, or the
            folder is not empty.
        OSError: if the disk is full or not writable.
    """
    # Refusals come first: to read and to write a large model takes minutes.
    _check_options(out, to, is_int8=is_int8, verify_on=verify_on)
    announce("reading the model")
    opened = bundle.load(source)
    with atomic_folder(out) as folder:
        job = ExportJob(
            opened=opened,
            folder=folder,
            is_int8=is_int8,
            verify_on=verify_on,
            inline_bytes=inline_bytes,
            announce=announce,
        )
        if to == "bundle":
            verified = write_bundle(source, folder)
        elif to == "onnx":
            verified = write_onnx(job)
        elif to == "sherpa":
            verified = write_sherpa(job)
        elif to == "onnx-asr":
            verified = write_for_onnx_asr(job)
        else:
            verified = write_transformers(job)
        files = _write_card(job, source, out.name, to, verified)
    return ExportResult(folder=str(out), to=to, files=(*files, CARD), verified=tuple(verified))


def _write_card(
    job: "ExportJob", source: Path, name: str, to: Target, verified: Sequence[str]
) -> tuple[str, ...]:
    """Write the model card; return the names of all other files, which it describes."""
    opened = job.opened
    # A file without a purpose in `_PURPOSES` is a KeyError: no card leaves a file unexplained.
    files = tuple(sorted(path.name for path in job.folder.iterdir()))
    purposes = _PURPOSES | sherpa_transducer.PURPOSES | GRAPHS
    purposes |= onnx_asr.PURPOSES if to == "onnx-asr" else {}
    about = Exported(
        name=name,
        to=to,
        params=sum(p.numel() for p in opened.model.parameters()),
        source=bundle_digest(source) or "",
        tokenizer=opened.tokenizer.digest,
        files={name: purposes[name] for name in files},
        verified=verified,
        loading=_loading_code(opened.model.shape, to),
        notes=_notes(opened, to),
    )
    (job.folder / CARD).write_text(card_text(about, opened.report), encoding="utf-8")
    return files


def _loading_code(shape: Shape, to: Target) -> str:
    has_own = to in ("onnx", "transformers") and shape.transducer is not None
    code = usage_snippets.TEXTS[f"{to} transducer" if has_own else to]
    return code.replace("ParakeetForTDT", class_name(shape))


def _check_options(out: Path, to: Target, *, is_int8: bool, verify_on: Sequence[Path]) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"`--out` must be a new folder, but `{out}` exists already.")
    if to not in _GRAPHS and is_int8:
        raise ExportError(
            f"`--int8` must go with a graph, `--to {' or '.join(_GRAPHS)}`, but goes with `{to}`."
        )
    if verify_on and to not in _NEEDS:
        raise ExportError(
            f"`--verify-on` must go with `--to {' or '.join(_NEEDS)}`, but goes with `{to}`."
        )
    for file in verify_on:
        check_file(file)
    if to in _NEEDS:
        _NEEDS[to]()
    if to in _GRAPHS:
        needs_extra()


def _notes(opened: Bundle, to: Target) -> list[str]:
    frontend_spec, size = opened.model.shape.frontend_spec, opened.tokenizer.size
    is_normalized = frontend_spec.normalization == "per_feature"
    normalized = " Each bin has mean 0 and deviation 1 over an utterance." * is_normalized
    blank = size - 1 if to == "transformers" else BLANK  # last, there
    outputs = (
        f"It outputs one of {size} tokens every {10 * frontend_spec.subsampling} ms;"
        f" token {blank} is the blank. Its decoder: {opened.model.shape.decoders[0]}."
    )
    features = FEATURES[frontend_spec.features].format(mels=frontend_spec.mels)
    lines = [features + normalized, "", outputs]
    if to in ("onnx", "sherpa") and opened.model.transducer is None:
        graph = (
            f"The graph is of opset {OPSET}; batch and time are free; in: `features` and"
            " `num_frames`; out: `log_probabilities` and `num_output_frames`."
            " Frames beyond an utterance's length have no meaning."
        )
        if to == "sherpa" and frontend_spec.is_padded:
            graph += " Each output frame is repeated for each of its frames of features."
        lines += ["", graph]
    added = count_added(opened.model) if to == "transformers" else 0
    if added:
        filled = (
            f"`{class_name(opened.model.shape)}` has blocks of one size, and no factored layers: to"
            f" fit it, the model has {added:,} more parameters here, which do not change its"
            " output."
        )
        lines += ["", filled]
    return lines
