"""Verification that an export computes what its model computes: graphs and transcripts.

Shapes: B batch, M mel frames.
"""

import importlib.metadata
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from core.bundle import Bundle
from core.conformer.model import Conformer
from core.data.audio import read_file
from core.data.sources.tts import assign_voices, synthesize_split
from core.data.tokenizer import Tokenizer
from core.evaluation.batch_decoding import best_tokens
from core.evaluation.wer import word_errors
from core.export.onnx.conversion import repeat_frames
from core.export.rounding import Errors, rounding_errors
from core.export.sherpa import Precision, transcribe_with_sherpa
from core.export.worker_process import RuntimeTranscripts
from core.features.kaldi import SAMPLE_RATE_HZ
from core.features.nemo import compute_features
from core.inference.exported_model import load_export
from core.inference.graph_interface import ExportError
from core.inference.recognizer import transcribe_waveform
from core.stages import Announce, be_silent

TOLERANCE = 1e-4
"""Of log-probabilities; larger differences are compared with double precision."""
LENGTHS = ((10,), (203, 203), (400, 399, 12, 7, 0, 100), (6000,))
"""Batches in mel frames: 0.1 to 60 s, ragged, without padding, and with an empty utterance."""
_SPOKEN, _TOKENS_SPOKEN = 8, 5
_NOISE_SECONDS = (0.03, 0.1, 1.0, 3.7)
_SNR_DB = (10.0, 30.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """The agreement of a graph with its model."""

    gap: float
    """Largest difference of log-probabilities."""
    frames: int
    """Number of compared frames."""
    same_best: float
    """Share of frames with the same most probable token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """Transcripts of files by `transcribe` and by another runtime, with normalized white space."""

    files: tuple[Path, ...]
    reference: tuple[str, ...]
    alone: tuple[str, ...]
    together: tuple[str, ...]
    """The runtime's transcripts in batches."""
    version: str
    """Version of the runtime."""

    @classmethod
    def of(
        cls,
        files: Sequence[Path],
        reference: tuple[str, ...],
        *,
        alone: Sequence[str],
        together: Sequence[str],
        version: str,
    ) -> "Texts":
        """Make it from the runtime's transcripts with any white space.

        Args:
            files: audio.
            reference: transcripts of `transcribe`.
            alone: the runtime's transcripts, file by file.
            together: the runtime's transcripts in batches.
            version: of the runtime.
        """
        return cls(
            files=tuple(files),
            reference=reference,
            alone=tuple(map(one_space, alone)),
            together=tuple(map(one_space, together)),
            version=version,
        )

    @property
    def differing(self) -> list[tuple[Path, str, str]]:
        """Files with different transcripts: those of `transcribe` and of the runtime."""
        return [
            (file, right, alone if alone != right else together)
            for file, right, alone, together in zip(
                self.files, self.reference, self.alone, self.together, strict=True
            )
            if {alone, together} != {right}
        ]

    @property
    def equal(self) -> int:
        return len(self.files) - len(self.differing)

    @property
    def with_words(self) -> int:
        return sum(bool(text) for text in self.reference)

    @property
    def word_difference(self) -> float:
        """WER of the runtime against the transcripts of `transcribe` that have words."""
        # A word error rate needs words in the reference: silent sounds are compared by `differing`.
        pairs = [pair for pair in zip(self.reference, self.alone, strict=True) if pair[0]]
        return word_errors(*zip(*pairs, strict=True)).wer if pairs else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """A batch of noise as loud as the model's training speech, and the model's output for it."""

    features: Float[Tensor, "batch mel_frames mels"]
    num_frames: Int[Tensor, " batch"]
    log_probabilities: Float[Tensor, "batch time vocabulary"]
    is_frame: Bool[Tensor, "batch time"]

    @classmethod
    @torch.inference_mode()
    def of(cls, model: Conformer, lengths: Sequence[int]) -> "Expected":
        """Compute it for utterances of these numbers of mel frames."""
        features, num_frames = noise(model, lengths)
        output = model(features, num_frames)
        return cls(
            features=features,
            num_frames=num_frames,
            log_probabilities=output.logits.log_softmax(-1),
            is_frame=output.is_frame,
        )


def agreement(
    model: Conformer,
    graph: nn.Module,
    lengths: Sequence[Sequence[int]] = LENGTHS,
    *,
    is_nemo: bool = False,
    expected: Sequence[Expected] | None = None,
) -> Agreement:
    """Compare a graph with its model on noise.

    Args:
        model: the reference.
        graph: compared with it.
        lengths: of the utterances of each batch, in mel frames.
        is_nemo: whether the graph outputs a frame for each frame of features.
        expected: the model's outputs for these batches, if they are computed already.
    """
    batches = expected or [Expected.of(model, utterance_frames) for utterance_frames in lengths]
    gap, same, frames = 0.0, 0, 0
    factor = model.shape.frontend_spec.subsampling if is_nemo else 1
    for batch in batches:
        actual, reference = _real_frames(graph, batch, factor)
        # `_real_frames` returns no frames if the numbers of frames differ: nothing can be compared.
        if len(actual) != len(reference):
            return Agreement(gap=math.inf, frames=0, same_best=0.0)
        # max(0.0, nan) is 0.0 in Python: NaN must become infinity, or it goes unseen.
        gap = max(gap, float((actual - reference).abs().nan_to_num(nan=math.inf).max()))
        same += int((actual.argmax(-1) == reference.argmax(-1)).sum())
        frames += len(reference)
    return Agreement(gap=gap, frames=frames, same_best=same / frames)


@torch.inference_mode()
def _real_frames(
    graph: nn.Module, batch: Expected, factor: int
) -> tuple[Float[Tensor, "actual vocabulary"], Float[Tensor, "real vocabulary"]]:
    """Return log-probabilities of real frames: the graph's, and the model's, repeated."""
    output = graph(batch.features, batch.num_frames)
    reference, is_frame = batch.log_probabilities, batch.is_frame
    if factor > 1:
        longest = batch.features.shape[1]
        # 10 frames of features and factor 4: output frames 0 0 0 0 1 1 1 1 2 2 of the model.
        reference = repeat_frames(reference, longest, factor)
        is_frame = torch.arange(longest) < batch.num_frames[:, None]
    if not torch.equal(output.num_frames, is_frame.sum(1)):
        return reference.new_zeros(0, reference.shape[-1]), reference[is_frame]
    return output.logits[:, : reference.shape[1]][is_frame], reference[is_frame]


def check_graph(
    model: Conformer,
    graph: nn.Module,
    name: str,
    *,
    is_nemo: bool = False,
    announce: Announce = be_silent,
    expected: Sequence[Expected] | None = None,
) -> tuple[Agreement, Errors | None]:
    """Compare a graph in floats with its model.

    Args:
        model: the reference.
        graph: compared with it.
        name: of the graph's file.
        is_nemo: whether the graph outputs a frame for each frame of features.
        announce: called with what begins.
        expected: the model's outputs for the batches of `LENGTHS`, if they are computed already.

    Returns:
        Their agreement; and both errors against double precision, if the gap exceeds the
        tolerance.

    Raises:
        ExportError: if they differ by more than the tolerance, and by more than rounding does.
    """
    batches = expected or [Expected.of(model, utterance_frames) for utterance_frames in LENGTHS]
    result = agreement(model, graph, is_nemo=is_nemo, expected=batches)
    if result.gap <= TOLERANCE:
        return result, None
    announce(f"comparing `{name}` and torch with double precision")
    factor = model.shape.frontend_spec.subsampling if is_nemo else 1
    errors = Errors()
    # Infinite: other numbers of frames, or numbers that are not finite. Errors then stay 0, and the
    # check below refuses the graph.
    if result.gap < math.inf:
        for batch in batches:
            errors = errors.combine(_errors(model, graph, batch, factor))
    # Without any comparison both errors are 0, and 0 is no more than 4 times 0.
    if not (errors.torch > 0 and errors.is_rounding):
        raise ExportError(
            f"`{name}` must give torch's log-probabilities within {TOLERANCE:g}, but they differ"
            f" by {result.gap:.3g}; from double precision torch's are {errors.torch:.2g} away, its"
            f" own {errors.other:.2g}."
        )
    return result, errors


def _errors(model: Conformer, graph: nn.Module, batch: Expected, factor: int) -> Errors:
    actual, _ = _real_frames(graph, batch, factor)
    if factor > 1:  # the first of the repeated frames
        # Lengths 5 and 3, factor 4: of the numbers 0 1 2 3 4 0 1 2 the frames 0, 4 and 0 are taken.
        numbers = torch.cat([torch.arange(int(length)) for length in batch.num_frames])
        actual = actual[numbers % factor == 0]
    speech = (batch.features, batch.num_frames)
    return rounding_errors(model, speech, actual)


def compare_texts(
    bundle: Bundle,
    folder: Path,
    files: Sequence[Path],
    precision: Precision = "float",
    *,
    reference: tuple[str, ...] | None = None,
) -> Texts:
    """Transcribe files with `transcribe` and with sherpa-onnx, as `compare_with` does.

    Raises:
        CorpusError: naming a file that cannot be read.
        ExportError: if sherpa-onnx is not installed, or cannot load or run the export.
    """
    run = partial(transcribe_with_sherpa, folder, precision=precision)
    return compare_with(bundle, files, run, reference=reference)


def compare_with(
    bundle: Bundle,
    files: Sequence[Path],
    run: Callable[[Sequence[Float[Tensor, " _"]]], RuntimeTranscripts],
    *,
    reference: tuple[str, ...] | None = None,
) -> Texts:
    """Transcribe files with `transcribe` and with another runtime.

    Args:
        bundle: the model.
        files: audio.
        run: transcribes sounds in the runtime.
        reference: transcripts of `transcribe`, if they are computed already.

    Raises:
        CorpusError: naming a file that cannot be read.
        ExportError: if the runtime cannot load or run the export.
    """
    waveforms = [read_file(file) for file in files]  # other runtimes have no windows
    if reference is None:
        reference = tuple(transcribe_waveform(bundle, waveform) for waveform in waveforms)
    transcripts = run(waveforms)
    return Texts.of(
        files,
        reference,
        alone=transcripts.alone,
        together=transcripts.together,
        version=transcripts.version,
    )


def transcribe_with_graphs(
    folder: Path, sounds: Sequence[Float[Tensor, " _"]], *, is_int8: bool = False
) -> RuntimeTranscripts:
    """Transcribe sounds with an export in ONNX Runtime, alone and padded to one batch.

    Raises:
        BundleError, ExportError, GraphError: as `load_export`.
    """
    opened = load_export(folder, is_int8=is_int8)
    spec, lengths = opened.model.frontend_spec, torch.tensor([len(sound) for sound in sounds])
    padded = torch.nn.utils.rnn.pad_sequence(list(sounds), batch_first=True)
    features, num_frames = compute_features(spec, padded, lengths)
    # Sounds that are too short for a frame have none, and nothing is said of them.
    has_frames = num_frames >= spec.shortest
    output = opened.model(features, num_frames * has_frames)
    return RuntimeTranscripts(
        alone=tuple(transcribe_waveform(opened, sound) for sound in sounds),
        together=tuple(map(opened.tokenizer.decode, best_tokens(opened.model, output))),
        version=importlib.metadata.version("onnxruntime"),
    )


def check_texts(bundle: Bundle, folder: Path, files: Sequence[Path]) -> Texts:
    """Check that sherpa-onnx gives the transcripts of `transcribe` with the graph in floats.

    Raises:
        CorpusError: naming a file that cannot be read.
        ExportError: if a transcript differs, or sherpa-onnx does not run.
    """
    texts = compare_texts(bundle, folder, files)
    check_equal(texts, "sherpa-onnx")
    return texts


def check_equal(texts: Texts, runtime: str) -> None:
    """Check that a runtime gives the transcripts of `transcribe`.

    Raises:
        ExportError: if a transcript differs.
    """
    if texts.differing:
        file, *both = texts.differing[0]
        # Some words from shortly before the first difference: a transcript may be long.
        pairs = enumerate(zip(*both, strict=False))
        begin = max(0, next((i for i, (a, b) in pairs if a != b), 0) - 20)
        right, wrong = ("..." * (begin > 0) + text[begin : begin + 80] for text in both)
        raise ExportError(
            f"{runtime} must give the transcripts of `transcribe`, but {len(texts.differing)} of"
            f" {len(texts.files)} differ: for `{file}` it gives `{wrong}` instead of `{right}`."
        )


def one_space(text: str) -> str:
    """Normalize white space: one space between words."""
    return " ".join(text.split())


def make_test_sounds(tokenizer: Tokenizer, folder: Path) -> list[Path]:
    """Write noise of 0.03 to 3.7 s, and tokens spoken by eSpeak NG if it is installed."""
    rng = np.random.default_rng(0)
    files = []
    for number, seconds in enumerate(_NOISE_SECONDS):
        # 0.03 s are 3 frames of features, fewer than `conv4` needs: both transcripts must be empty.
        samples = 0.1 * rng.standard_normal(round(seconds * SAMPLE_RATE_HZ))
        files.append(folder / f"noise-{number}.wav")
        soundfile.write(files[-1], samples, SAMPLE_RATE_HZ, subtype="FLOAT")
    texts = list(_random_texts(tokenizer, rng))
    if texts and importlib.util.find_spec("espeakng_loader") is not None:
        synthesize_split(folder, "dev", assign_voices("dev", texts, rng), seed=0, snr_db=_SNR_DB)
    return files + sorted((folder / "dev").rglob("*.flac"))


def _random_texts(tokenizer: Tokenizer, rng: np.random.Generator) -> Iterator[str]:
    """Yield texts of a few random tokens."""
    # Nobody can speak the blank, the unknown token or one that no text holds.
    silent = {tokenizer.unknown, *tokenizer.describe_pieces().special}
    token_ids = [number for number in range(tokenizer.size) if number not in silent]
    for _ in range(_SPOKEN if token_ids else 0):
        ids = rng.choice(token_ids, _TOKENS_SPOKEN)
        if text := tokenizer.decode([int(i) for i in ids]):
            yield text


def noise(
    model: Conformer, lengths: Sequence[int]
) -> tuple[Float[Tensor, "batch mel_frames mels"], Int[Tensor, " batch"]]:
    """Return noise as loud as the model's training speech, and its lengths."""
    generator = torch.Generator().manual_seed(sum(lengths))
    drawn = torch.randn(len(lengths), max(lengths), model.frontend_spec.mels, generator=generator)
    frontend = model.frontend
    # The front end's normalization backwards: after it the noise has mean 0 and deviation 1.
    return frontend.mean + frontend.deviation * drawn, torch.tensor(list(lengths))
