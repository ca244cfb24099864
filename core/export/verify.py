"""Whether an export computes what its model does: a graph against torch, a runtime's texts.

Shapes: B batch, M mel frames.
"""

import importlib.util
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from core.bundle import Bundle
from core.conformer.model import Conformer
from core.conformer.shape import MELS
from core.data.audio import read_file
from core.data.sources.tts import assign_voices, synthesize_split
from core.data.tokenizer import UNKNOWN, Tokenizer
from core.evaluation.wer import word_errors
from core.export.onnx.conversion import repeat_frames
from core.export.rounding import Errors, rounding_errors
from core.export.sherpa import Precision, transcribe_with_sherpa
from core.features.kaldi import SAMPLE_RATE_HZ
from core.inference.graph_interface import ExportError
from core.inference.recognizer import transcribe_waveform
from core.stages import Announce, be_silent

TOLERANCE = 1e-4
"""Of log-probabilities; more is asked about in double precision."""
LENGTHS = ((10,), (203, 203), (400, 399, 12, 7, 0, 100), (6000,))
"""Of batches, in mel frames: 0.1 to 60 s, ragged, without padding, and with nothing in it."""
_SPOKEN, _TOKENS_SPOKEN = 8, 5
_NOISE_SECONDS = (0.03, 0.1, 1.0, 3.7)
_SNR_DB = (10.0, 30.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Of a graph with its model."""

    gap: float
    """Largest difference of a log-probability."""
    frames: int
    """That were compared."""
    same_best: float
    """Share of them whose likeliest token is the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """What is heard in some files, white space aside: by `transcribe`, and by another runtime."""

    files: tuple[Path, ...]
    right: tuple[str, ...]
    alone: tuple[str, ...]
    together: tuple[str, ...]
    """In batches."""
    version: str
    """Of that runtime."""

    @classmethod
    def of(
        cls,
        files: Sequence[Path],
        right: tuple[str, ...],
        *,
        alone: Sequence[str],
        together: Sequence[str],
        version: str,
    ) -> "Texts":
        """From what the runtime says, spaced as it likes."""
        return cls(
            files=tuple(files),
            right=right,
            alone=tuple(map(one_space, alone)),
            together=tuple(map(one_space, together)),
            version=version,
        )

    @property
    def differing(self) -> list[tuple[Path, str, str]]:
        """Each file with another text: what `transcribe` says, and what the runtime does."""
        return [
            (file, right, alone if alone != right else together)
            for file, right, alone, together in zip(
                self.files, self.right, self.alone, self.together, strict=True
            )
            if {alone, together} != {right}
        ]

    @property
    def equal(self) -> int:
        return len(self.files) - len(self.differing)

    @property
    def with_words(self) -> int:
        return sum(bool(text) for text in self.right)

    @property
    def words_differ(self) -> float:
        """As if `transcribe` were right: word errors of sounds in which it hears any."""
        pairs = [pair for pair in zip(self.right, self.alone, strict=True) if pair[0]]
        return word_errors(*zip(*pairs, strict=True)).wer if pairs else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """What a model gives for a batch of noise as loud as the speech that it was trained on."""

    features: Float[Tensor, "batch mel_frames mels"]
    num_frames: Int[Tensor, " batch"]
    log_probabilities: Float[Tensor, "batch time vocabulary"]
    is_frame: Bool[Tensor, "batch time"]

    @classmethod
    @torch.inference_mode()
    def of(cls, model: Conformer, lengths: Sequence[int]) -> "Expected":
        """Of utterances of so many mel frames."""
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
        model: what is right.
        graph: what is compared with it.
        lengths: of the utterances of each batch, in mel frames.
        is_nemo: whether the graph gives a frame for each of the features.
        expected: what the model gives for these batches, if that is known.
    """
    batches = expected or [Expected.of(model, each) for each in lengths]
    gap, same, frames = 0.0, 0, 0
    factor = model.shape.frontend_spec.subsampling if is_nemo else 1
    for batch in batches:
        heard, right = _heard(graph, batch, factor)
        if len(heard) != len(right):
            return Agreement(gap=math.inf, frames=0, same_best=0.0)
        gap = max(gap, float((heard - right).abs().nan_to_num(nan=math.inf).max()))
        same += int((heard.argmax(-1) == right.argmax(-1)).sum())
        frames += len(right)
    return Agreement(gap=gap, frames=frames, same_best=same / frames)


@torch.inference_mode()
def _heard(
    graph: nn.Module, batch: Expected, factor: int
) -> tuple[Float[Tensor, "heard vocabulary"], Float[Tensor, "real vocabulary"]]:
    """A graph's log-probabilities of real frames, and the model's, each said `factor` times."""
    found = graph(batch.features, batch.num_frames)
    right, is_frame = batch.log_probabilities, batch.is_frame
    if factor > 1:
        longest = batch.features.shape[1]
        right = repeat_frames(right, longest, factor)
        is_frame = torch.arange(longest) < batch.num_frames[:, None]
    if not torch.equal(found.num_frames, is_frame.sum(1)):
        return right.new_zeros(0, right.shape[-1]), right[is_frame]
    return found.logits[:, : right.shape[1]][is_frame], right[is_frame]


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
        model: what is right.
        graph: what is compared with it.
        name: of the graph's file.
        is_nemo: whether the graph gives a frame for each of the features.
        announce: told what begins.
        expected: what the model gives for the batches of `LENGTHS`, if that is known.

    Returns:
        How far they agree, and, if that is further apart than the tolerance, both errors against
        double precision.

    Raises:
        ExportError: if they differ by more than the tolerance, and by more than rounding does.
    """
    batches = expected or [Expected.of(model, each) for each in LENGTHS]
    found = agreement(model, graph, is_nemo=is_nemo, expected=batches)
    if found.gap <= TOLERANCE:
        return found, None
    announce(f"comparing `{name}` and torch with double precision")
    factor = model.shape.frontend_spec.subsampling if is_nemo else 1
    errors = Errors()
    if found.gap < math.inf:
        for batch in batches:
            errors = errors.joined(_errors(model, graph, batch, factor))
    if not (errors.torch > 0 and errors.is_rounding):
        raise ExportError(
            f"`{name}` must give torch's log-probabilities within {TOLERANCE:g}, but they differ"
            f" by {found.gap:.3g}; from double precision torch's are {errors.torch:.2g} away, its"
            f" own {errors.other:.2g}."
        )
    return found, errors


def _errors(model: Conformer, graph: nn.Module, batch: Expected, factor: int) -> Errors:
    heard, _ = _heard(graph, batch, factor)
    if factor > 1:  # one of those that are said again
        numbers = torch.cat([torch.arange(int(length)) for length in batch.num_frames])
        heard = heard[numbers % factor == 0]
    speech = (batch.features, batch.num_frames)
    return rounding_errors(model, speech, heard, batch.is_frame)


def compare_texts(
    bundle: Bundle,
    folder: Path,
    files: Sequence[Path],
    precision: Precision = "float",
    *,
    right: tuple[str, ...] | None = None,
) -> Texts:
    """What `transcribe` hears in files, `right` if that is known, and what sherpa-onnx does.

    Raises:
        CorpusError: naming a file that cannot be heard.
        ExportError: if sherpa-onnx is not installed, or cannot load or run the export.
    """
    waveforms = [read_file(file) for file in files]  # sherpa-onnx knows no windows
    if right is None:
        right = tuple(transcribe_waveform(bundle, waveform) for waveform in waveforms)
    heard = transcribe_with_sherpa(folder, waveforms, precision)
    return Texts.of(files, right, alone=heard.alone, together=heard.together, version=heard.version)


def check_texts(bundle: Bundle, folder: Path, files: Sequence[Path]) -> Texts:
    """Compare texts of the graph in floats.

    Raises:
        CorpusError: naming a file that cannot be heard.
        ExportError: if a text differs, or sherpa-onnx does not run.
    """
    found = compare_texts(bundle, folder, files)
    check_equal(found, "sherpa-onnx")
    return found


def check_equal(found: Texts, runtime: str) -> None:
    """Compare what a runtime hears with what `transcribe` does.

    Raises:
        ExportError: if a text differs.
    """
    if found.differing:
        file, right, wrong = found.differing[0]
        raise ExportError(
            f"{runtime} must hear what `transcribe` hears, but {len(found.differing)} of"
            f" {len(found.files)} texts differ: of `{file}` it says `{wrong}` instead of `{right}`."
        )


def one_space(text: str) -> str:
    """Between two words, and none around them."""
    return " ".join(text.split())


def make_test_sounds(tokenizer: Tokenizer, folder: Path) -> list[Path]:
    """Noise from a click to seconds, and, where eSpeak NG is installed, it speaking the tokens."""
    chance = np.random.default_rng(0)
    files = []
    for number, seconds in enumerate(_NOISE_SECONDS):
        samples = 0.1 * chance.standard_normal(round(seconds * SAMPLE_RATE_HZ))
        files.append(folder / f"noise-{number}.wav")
        soundfile.write(files[-1], samples, SAMPLE_RATE_HZ, subtype="FLOAT")
    texts = list(_sayable(tokenizer, chance))
    if texts and importlib.util.find_spec("espeakng_loader") is not None:
        synthesize_split(folder, "dev", assign_voices("dev", texts, chance), seed=0, snr_db=_SNR_DB)
    return files + sorted((folder / "dev").rglob("*.flac"))


def _sayable(tokenizer: Tokenizer, chance: np.random.Generator) -> Iterator[str]:
    """Some tokens in a row, of those that mean something."""
    known = range(UNKNOWN + 1, tokenizer.size)
    for _ in range(_SPOKEN if known else 0):
        ids = chance.choice(known, _TOKENS_SPOKEN)
        if text := tokenizer.decode([int(i) for i in ids]):
            yield text


def noise(
    model: Conformer, lengths: Sequence[int]
) -> tuple[Float[Tensor, "batch mel_frames mels"], Int[Tensor, " batch"]]:
    """As loud as the speech that the model was trained on, and its lengths."""
    generator = torch.Generator().manual_seed(sum(lengths))
    drawn = torch.randn(len(lengths), max(lengths), MELS, generator=generator)
    frontend = model.frontend
    return frontend.mean + frontend.deviation * drawn, torch.tensor(list(lengths))
