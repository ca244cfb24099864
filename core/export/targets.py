"""The files of each target of an export, and their verification.

Each function writes into the folder of the job, and returns what was verified, in sentences.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from core import bundle
from core.bundle import Bundle
from core.data.audio import read_file
from core.data.tokenizer import FILE_NAME
from core.decoders.greedy import MOST_SYMBOLS
from core.decoders.transducer import Transducer
from core.export import onnx_asr
from core.export.onnx.conversion import export_onnx
from core.export.onnx.quantization import quantize_graphs, quantize_weights
from core.export.onnx.transducer import GRAPH_ENDS, write_transducer_graphs
from core.export.parakeet import write_parakeet
from core.export.rounding import Errors
from core.export.sherpa import SPEC, TOKENS, Precision, sherpa_spec, tokens_text
from core.export.sherpa_transducer import SherpaKind, choose_kind, write_sherpa_transducer
from core.export.transformers_check import check_export
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
    transcribe_with_graphs,
)
from core.inference.exported_model import FEATURES_FILE, FLOAT, INT8, features_text
from core.inference.onnx_session import Graph
from core.inference.recognizer import transcribe_waveform
from core.inference.sherpa_loader import Loader, choose_loader
from core.stages import Announce

OTHER_FEATURES = (
    "It computes other features than NeMo; a model imported with `import --for-sherpa` reads the"
    " same ones."
)


def write_bundle(source: Path, folder: Path) -> list[str]:
    for name in (*bundle.FILES, "checksums.json"):
        shutil.copyfile(source / name, folder / name)
    # The copies are checked, not the originals: a full disk or a wrong read shows here.
    bundle.check(folder)
    return ["Every file matches its checksum."]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportJob:
    """An export in progress."""

    opened: Bundle
    folder: Path
    is_int8: bool
    verify_on: Sequence[Path]
    inline_bytes: int
    announce: Announce


def write_onnx(job: ExportJob) -> list[str]:
    write_common_files(job.opened, job.folder)
    if job.opened.model.transducer is not None:
        return _write_onnx_transducer(job, job.opened.model.transducer)
    # No runtime of one kind: a graph in our own form, without metadata.
    return _write_graphs(job, Loader(name=""))


def _write_onnx_transducer(job: ExportJob, transducer: Transducer) -> list[str]:
    opened, folder = job.opened, job.folder
    job.announce("writing the graphs")
    write_transducer_graphs(opened.model, transducer, folder, inline_bytes=job.inline_bytes)
    if job.is_int8:
        quantize_graphs(folder, GRAPH_ENDS, inline_bytes=job.inline_bytes)
    with TemporaryDirectory() as scratch:
        files = make_test_sounds(opened.tokenizer, Path(scratch))
        job.announce("comparing texts of ONNX Runtime and `transcribe`")
        texts = compare_with(opened, files, partial(transcribe_with_graphs, folder))
        check_equal(texts, "ONNX Runtime")
        sentence = (
            f"ONNX Runtime {texts.version} gives the transcripts of `transcribe` for"
            f" {texts.equal} of {len(files)} sounds, {texts.with_words} of them with words, alone"
            " and in batches."
        )
        verified = [sentence]
        if job.is_int8:
            job.announce("comparing texts of ONNX Runtime in 8-bit integers")
            run = partial(transcribe_with_graphs, folder, is_int8=True)
            texts = compare_with(opened, files, run, reference=texts.reference)
            verified.append(_integer_sentence(texts))
    return verified


def _write_sherpa_transducer(job: ExportJob, transducer: Transducer) -> list[str]:
    opened, folder, kind = job.opened, job.folder, choose_kind(job.opened.model)
    job.announce("writing the graphs")
    write_common_files(opened, folder)
    write_sherpa_transducer(
        opened, transducer, kind, folder, is_int8=job.is_int8, inline_bytes=job.inline_bytes
    )
    with TemporaryDirectory() as scratch:
        files = list(job.verify_on) or make_test_sounds(opened.tokenizer, Path(scratch))
        job.announce("comparing texts of sherpa-onnx and `transcribe`")
        limited = _greedy_texts(opened, files, most_symbols=kind.most_symbols)
        texts = compare_texts(opened, folder, files, reference=limited)
        if kind.is_exact:
            check_equal(texts, "sherpa-onnx")
        verified = [_limited_sentence(opened, files, kind, texts)]
        if not kind.is_exact:
            verified.append(OTHER_FEATURES)
        if job.is_int8:
            job.announce("comparing texts of sherpa-onnx in 8-bit integers")
            texts = compare_texts(opened, folder, files, "int8", reference=limited)
            verified.append(_integer_sentence(texts))
    return verified


def _limited_sentence(opened: Bundle, files: Sequence[Path], kind: SherpaKind, texts: Texts) -> str:
    """Say how many texts are those of a search with as many tokens at a frame as sherpa-onnx's."""
    most = kind.most_symbols
    sentence = (
        f"sherpa-onnx {texts.version}, in a process of its own, gives the transcripts of greedy"
        f" search with {'one token' if most == 1 else f'up to {most} tokens'} a frame for"
        f" {texts.equal} of {len(files)} sounds, {texts.with_words} of them with words, alone and"
        " in batches"
    )
    if most == MOST_SYMBOLS:
        return f"{sentence}, as `transcribe` does."
    usual = _greedy_texts(opened, files)
    same = sum(a == b for a, b in zip(texts.reference, usual, strict=True))
    return (
        f"{sentence}; `transcribe`, with up to {MOST_SYMBOLS} tokens a frame, gives {same} of them."
    )


def write_sherpa(job: ExportJob) -> list[str]:
    if job.opened.model.transducer is not None:
        return _write_sherpa_transducer(job, job.opened.model.transducer)
    opened, folder = job.opened, job.folder
    loader = choose_loader(opened.model.shape.frontend_spec, opened.tokenizer.size)
    write_common_files(opened, folder)
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
            verified.append(OTHER_FEATURES)
        if job.is_int8:
            job.announce("comparing texts of sherpa-onnx in 8-bit integers")
            # The transcripts of `transcribe` are those of the graph in floats: not computed again.
            texts = compare_texts(opened, folder, files, "int8", reference=texts.reference)
            verified.append(_integer_sentence(texts))
    return verified


def write_for_onnx_asr(job: ExportJob) -> list[str]:
    opened, folder = job.opened, job.folder
    kind = onnx_asr.model_kind(opened.model)
    job.announce("writing the graphs")
    onnx_asr.write_onnx_asr(opened, folder, is_int8=job.is_int8, inline_bytes=job.inline_bytes)
    opened.tokenizer.save(folder / FILE_NAME)
    _write_features(opened, folder)
    _write_report(opened, folder)
    with TemporaryDirectory() as scratch:
        files = list(job.verify_on) or make_test_sounds(opened.tokenizer, Path(scratch))
        job.announce("comparing texts of onnx-asr and `transcribe`")
        run = partial(onnx_asr.transcribe_with_onnx_asr, folder)
        reference = tuple(map(onnx_asr.with_its_spaces, _greedy_texts(opened, files)))
        texts = compare_with(opened, files, run, reference=reference)
        check_equal(texts, "onnx-asr")
        sentence = (
            f"onnx-asr {texts.version}, in a process of its own, gives the transcripts of"
            f" `transcribe` as `{kind}` for {texts.equal} of {len(files)} sounds,"
            f" {texts.with_words} of them with words, alone and in batches."
        )
        verified = [sentence]
        if job.is_int8:
            job.announce("comparing texts of onnx-asr in 8-bit integers")
            texts = compare_with(opened, files, partial(run, is_int8=True), reference=reference)
            verified.append(_integer_sentence(texts))
    return verified


def _greedy_texts(
    opened: Bundle, files: Sequence[Path], *, most_symbols: int = MOST_SYMBOLS
) -> tuple[str, ...]:
    waveforms = map(read_file, files)
    return tuple(transcribe_waveform(opened, w, most_symbols=most_symbols) for w in waveforms)


def _integer_sentence(texts: Texts) -> str:
    return (
        f"In 8-bit integers {texts.equal} of {len(texts.files)} transcripts are equal;"
        f" {100 * texts.word_difference:.1f} % of the words differ."
    )


def write_transformers(job: ExportJob) -> list[str]:
    opened, folder = job.opened, job.folder
    job.announce("writing the weights")
    write_parakeet(opened.model, opened.tokenizer, folder)
    _write_report(opened, folder)
    with TemporaryDirectory() as scratch:
        files = list(job.verify_on) or make_test_sounds(opened.tokenizer, Path(scratch))
        return check_export(opened, folder, files, announce=job.announce)


def write_common_files(opened: Bundle, folder: Path) -> None:
    """Write the files that every graph needs: tokenizer, tokens, features and report."""
    opened.tokenizer.save(folder / FILE_NAME)
    (folder / TOKENS).write_text(tokens_text(opened.tokenizer), encoding="utf-8")
    _write_features(opened, folder)
    _write_report(opened, folder)


def _write_features(opened: Bundle, folder: Path) -> None:
    (folder / FEATURES_FILE).write_text(features_text(opened.model.frontend_spec), encoding="utf-8")


def _write_report(opened: Bundle, folder: Path) -> None:
    (folder / "report.json").write_text(json.dumps(dict(opened.report), indent=1))


def _write_graphs(job: ExportJob, loader: Loader) -> list[str]:
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
