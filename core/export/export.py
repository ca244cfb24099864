"""Export of a bundle as a folder that other programs load, verified before it appears.

Targets: `bundle`, a copy; `onnx`, a graph for any runtime; `sherpa`, a graph with the files that
sherpa-onnx loads; `onnx-asr`, the files that onnx-asr loads; `transformers`, the files that its
`ParakeetForCTC` loads.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from core import bundle
from core.bundle import Bundle
from core.data.audio import check_file, read_file
from core.data.tokenizer import BLANK, FILE_NAME
from core.digests import bundle_digest
from core.export import onnx_asr, usage_snippets
from core.export.model_card import FEATURES, Exported, card_text
from core.export.onnx.conversion import DATA, LARGEST_INLINE, OPSET, export_onnx
from core.export.onnx.quantization import quantize_weights
from core.export.parakeet import EXTRACTOR, PROCESSOR, TOKENS_CONFIG, count_added, write_parakeet
from core.export.rounding import Errors
from core.export.sherpa import SPEC, TOKENS, Precision, needs_sherpa, sherpa_spec, tokens_text
from core.export.transformers_check import check_export, needs_transformers
from core.export.verify import (
    LENGTHS,
    TOLERANCE,
    Agreement,
    Expected,
    Texts,
    agreement,
    check_equal,
    check_graph,
    check_texts,
    compare_texts,
    compare_with,
    make_test_sounds,
)
from core.files import atomic_folder
from core.importers.parakeet import CONFIG
from core.importers.tokenizer import FAST
from core.inference.exported_model import FEATURES_FILE, FLOAT, INT8, features_text
from core.inference.graph_interface import ExportError, needs_extra
from core.inference.onnx_session import Graph
from core.inference.recognizer import transcribe_waveform
from core.inference.sherpa_loader import Loader, choose_loader
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
        job = _Job(
            opened=opened,
            folder=folder,
            is_int8=is_int8,
            verify_on=verify_on,
            inline_bytes=inline_bytes,
            announce=announce,
        )
        if to == "bundle":
            verified = _as_bundle(source, folder)
        elif to == "onnx":
            verified = _as_onnx(job)
        elif to == "sherpa":
            verified = _as_sherpa(job)
        elif to == "onnx-asr":
            verified = _as_onnx_asr(job)
        else:
            verified = _as_transformers(job)
        files = _write_card(job, source, out.name, to, verified)
    return ExportResult(folder=str(out), to=to, files=(*files, CARD), verified=tuple(verified))


def _write_card(
    job: "_Job", source: Path, name: str, to: Target, verified: Sequence[str]
) -> tuple[str, ...]:
    """Write the model card; return the names of all other files, which it describes."""
    opened = job.opened
    # A file without a purpose in `_PURPOSES` is a KeyError: no card leaves a file unexplained.
    files = tuple(sorted(path.name for path in job.folder.iterdir()))
    purposes = _PURPOSES | (onnx_asr.PURPOSES if to == "onnx-asr" else {})
    about = Exported(
        name=name,
        to=to,
        params=sum(p.numel() for p in opened.model.parameters()),
        source=bundle_digest(source) or "",
        tokenizer=opened.tokenizer.digest,
        files={name: purposes[name] for name in files},
        verified=verified,
        loading=usage_snippets.TEXTS[to],
        notes=_notes(opened, to),
    )
    (job.folder / CARD).write_text(card_text(about, opened.report), encoding="utf-8")
    return files


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


def _as_bundle(source: Path, folder: Path) -> list[str]:
    for name in (*bundle.FILES, "checksums.json"):
        shutil.copyfile(source / name, folder / name)
    # The copies are checked, not the originals: a full disk or a wrong read shows here.
    bundle.check(folder)
    return ["Every file matches its checksum."]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """An export in progress."""

    opened: Bundle
    folder: Path
    is_int8: bool
    verify_on: Sequence[Path]
    inline_bytes: int
    announce: Announce


def _as_onnx(job: _Job) -> list[str]:
    _write_common_files(job.opened, job.folder)
    # No runtime of one kind: a graph in our own form, without metadata.
    return _write_graphs(job, Loader(name=""))


def _as_sherpa(job: _Job) -> list[str]:
    opened, folder = job.opened, job.folder
    loader = choose_loader(opened.model.shape.frontend_spec, opened.tokenizer.size)
    _write_common_files(opened, folder)
    verified = _write_graphs(job, loader)
    graphs: dict[Precision, str] = {"float": FLOAT}
    if job.is_int8:
        graphs["int8"] = INT8
    (folder / SPEC).write_text(json.dumps(sherpa_spec(loader, graphs), indent=1) + "\n")
    with TemporaryDirectory() as scratch:
        files = list(job.verify_on) or make_test_sounds(opened.tokenizer, Path(scratch))
        job.announce("comparing texts of sherpa-onnx and `transcribe`")
        # With other features, transcripts may differ.
        texts = (check_texts if loader.is_exact else compare_texts)(opened, folder, files)
        verified.append(
            f"sherpa-onnx {texts.version}, in a process of its own, gives the transcripts of"
            f" `transcribe` for {texts.equal} of {len(files)} sounds, {texts.with_words} of them"
            " with words, alone and in batches."
        )
        if not loader.is_exact:
            verified.append(
                "It computes other features than NeMo; a model imported with `import --for-sherpa`"
                " reads the same ones."
            )
        if job.is_int8:
            job.announce("comparing texts of sherpa-onnx in 8-bit integers")
            # The transcripts of `transcribe` are those of the graph in floats: not computed again.
            texts = compare_texts(opened, folder, files, "int8", reference=texts.reference)
            verified.append(_integer_sentence(texts))
    return verified


def _as_onnx_asr(job: _Job) -> list[str]:
    opened, folder = job.opened, job.folder
    kind = onnx_asr.model_kind(opened.model)
    job.announce("writing the graphs")
    onnx_asr.write_onnx_asr(opened, folder, is_int8=job.is_int8, inline_bytes=job.inline_bytes)
    opened.tokenizer.save(folder / FILE_NAME)
    _write_report(opened, folder)
    with TemporaryDirectory() as scratch:
        files = list(job.verify_on) or make_test_sounds(opened.tokenizer, Path(scratch))
        job.announce("comparing texts of onnx-asr and `transcribe`")
        transcribers = {
            name: partial(onnx_asr.transcribe_with_onnx_asr, folder, is_int8=is_int8)
            for name, is_int8 in (("float", False), ("int8", True))
        }
        reference = tuple(
            onnx_asr.with_its_spaces(transcribe_waveform(opened, read_file(file))) for file in files
        )
        texts = compare_with(opened, files, transcribers["float"], reference=reference)
        check_equal(texts, "onnx-asr")
        sentence = (
            f"onnx-asr {texts.version}, in a process of its own, gives the transcripts of"
            f" `transcribe` as `{kind}` for {texts.equal} of {len(files)} sounds,"
            f" {texts.with_words} of them with words, alone and in batches."
        )
        verified = [sentence]
        if job.is_int8:
            job.announce("comparing texts of onnx-asr in 8-bit integers")
            texts = compare_with(opened, files, transcribers["int8"], reference=reference)
            verified.append(_integer_sentence(texts))
    return verified


def _integer_sentence(texts: Texts) -> str:
    return (
        f"In 8-bit integers {texts.equal} of {len(texts.files)} transcripts are equal;"
        f" {100 * texts.word_difference:.1f} % of the words differ."
    )


def _as_transformers(job: _Job) -> list[str]:
    opened, folder = job.opened, job.folder
    job.announce("writing the weights")
    write_parakeet(opened.model, opened.tokenizer, folder)
    _write_report(opened, folder)
    with TemporaryDirectory() as scratch:
        files = list(job.verify_on) or make_test_sounds(opened.tokenizer, Path(scratch))
        return check_export(opened, folder, files, announce=job.announce)


def _write_common_files(opened: Bundle, folder: Path) -> None:
    """Write the files that every graph needs: tokenizer, tokens, features and report."""
    opened.tokenizer.save(folder / FILE_NAME)
    (folder / TOKENS).write_text(tokens_text(opened.tokenizer), encoding="utf-8")
    (folder / FEATURES_FILE).write_text(features_text(opened.model.frontend_spec), encoding="utf-8")
    _write_report(opened, folder)


def _write_report(opened: Bundle, folder: Path) -> None:
    (folder / "report.json").write_text(json.dumps(dict(opened.report), indent=1))


def _write_graphs(job: _Job, loader: Loader) -> list[str]:
    """Write the graphs, and compare them with torch."""
    model, file = job.opened.model, job.folder / FLOAT
    job.announce("running the model in torch, to compare with")
    # Computed once, for the graph in floats and the one in integers.
    expected = [Expected.of(model, lengths) for lengths in LENGTHS]
    job.announce(f"writing `{FLOAT}`")
    export_onnx(
        model,
        file,
        is_nemo=loader.is_nemo,
        metadata=loader.metadata,
        inline_bytes=job.inline_bytes,
    )
    job.announce(f"comparing `{FLOAT}` in ONNX Runtime with torch")
    result, errors = check_graph(
        model,
        Graph(file),
        FLOAT,
        is_nemo=loader.is_nemo,
        announce=job.announce,
        expected=expected,
    )
    sentences = [_float_sentence(result, errors)]
    if job.is_int8:
        job.announce(f"writing `{INT8}`")
        quantize_weights(file, job.folder / INT8, inline_bytes=job.inline_bytes)
        job.announce(f"comparing `{INT8}` in ONNX Runtime with torch")
        graph = Graph(job.folder / INT8)
        result = agreement(model, graph, is_nemo=loader.is_nemo, expected=expected)
        sentences.append(
            f"`{INT8}` has the same most probable token in {100 * result.same_best:.1f} % of those"
            " frames of noise."
        )
    return sentences


def _float_sentence(result: Agreement, errors: Errors | None) -> str:
    on = f"on ragged batches of 0.1 to 60 s ({result.gap:.1e} at most, {result.frames} frames"
    if errors is None:
        return (
            f"`{FLOAT}` in ONNX Runtime gives torch's log-probabilities within {TOLERANCE:g} {on})."
        )
    return (
        f"`{FLOAT}` in ONNX Runtime gives torch's log-probabilities within rounding {on}); from"
        f" double precision torch's are {errors.torch:.1e} away, its own {errors.other:.1e}."
    )


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
    if to in ("onnx", "sherpa"):
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
            "`ParakeetForCTC` has blocks of one size, and no factored layers: to fit it, the model"
            f" has {added:,} more parameters here, which do not change its output."
        )
        lines += ["", filled]
    return lines
