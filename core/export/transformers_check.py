"""Checks that an export to transformers computes what our model computes.

transformers runs in a process of its own, as in a user's program; the extra `transformers` installs
it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from core.bundle import Bundle
from core.data.audio import read_file
from core.export import transformers_worker
from core.export.rounding import Errors, rounding_errors
from core.export.verify import Texts, check_equal, noise, one_space
from core.export.worker_process import needs_package, run_worker
from core.inference.graph_interface import ExportError
from core.inference.recognizer import transcribe_waveform
from core.stages import Announce, be_silent

TOLERANCE = 1e-5
"""Largest difference of log-probabilities, divided by 1 + their size."""
LENGTHS = ((10,), (203, 203), (400, 399, 12, 7, 100), (2000,))
"""Batches in mel frames: 0.1 to 20 s, ragged and not; transformers cannot compute 0 frames."""
GIVEN, MADE = "given.npz", "made.npz"
"""Files of arrays for the process, and from it."""
_LISTS, _LONGEST = 100, 12
"""Number and largest length of lists of tokens to decode."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformersOutputs:
    """The outputs of transformers for features, for sounds, and for tokens."""

    log_probabilities: tuple[Float[Tensor, "_ _ vocabulary"], ...]
    """Log-probabilities of each batch, the blank first, as in our models."""
    alone: tuple[str, ...]
    together: tuple[str, ...]
    """Transcripts of the same sounds in padded batches."""
    spelled: tuple[str, ...]
    """The text of each list of tokens."""
    version: str


def needs_transformers() -> None:
    """Check that transformers is installed.

    Raises:
        ExportError: if it is not, with the command that installs it.
    """
    needs_package("transformers", "transformers")


def run_transformers(
    folder: Path,
    *,
    batches: Sequence[tuple[Float[Tensor, "_ _ mels"], Sequence[int]]] = (),
    sounds: Sequence[Float[Tensor, " _"]] = (),
    spelled: Sequence[Sequence[int]] = (),
) -> TransformersOutputs:
    """Run an export in transformers, in a process of its own.

    Args:
        folder: of the export.
        batches: features, and the number of real frames of each.
        sounds: at 16 kHz.
        spelled: lists of token ids, to be decoded.

    Raises:
        ExportError: if transformers is not installed, or cannot load or run the export.
    """
    needs_transformers()
    with TemporaryDirectory() as scratch:
        arrays: dict[str, Any] = {f"sound{i}": sound.numpy() for i, sound in enumerate(sounds)}
        for i, (features, num_frames) in enumerate(batches):
            arrays |= {f"features{i}": features.numpy(), f"frames{i}": np.array(num_frames)}
        np.savez(Path(scratch) / GIVEN, **arrays)
        request = {
            "folder": str(folder),
            "scratch": scratch,
            "sounds": len(sounds),
            "batches": len(batches),
            # Their ids are ours less one, as their blank comes last.
            "spelled": [[int(i) - 1 for i in ids] for ids in spelled],
        }
        answer = _run_worker(request, folder)
        with np.load(Path(scratch) / MADE) as outputs:
            logs = [torch.from_numpy(outputs[f"logs{i}"]) for i in range(len(batches))]
    texts = {name: tuple(answer[name]) for name in ("alone", "together", "spelled")}
    # Columns 1 2 0 of theirs become 0 1 2: the blank comes first again.
    by_ours = tuple(log.roll(1, dims=-1) for log in logs)
    return TransformersOutputs(log_probabilities=by_ours, version=answer["version"], **texts)


def _run_worker(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    rule = f"transformers must load and run `{folder.name}` by `ParakeetForCTC`"
    # Files that are missing in the folder must not be downloaded.
    env = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    return run_worker(transformers_worker.__file__, request, rule=rule, env=env)


def check_export(
    bundle: Bundle, folder: Path, files: Sequence[Path], *, announce: Announce = be_silent
) -> list[str]:
    """Compare an export with its model; return a sentence for each check.

    Args:
        bundle: the model.
        folder: of the export.
        files: audio.
        announce: called with what begins.

    Raises:
        CorpusError: naming a file that cannot be read.
        ExportError: if log-probabilities, a transcript or the text of tokens differ.
    """
    batches = [(_zero_padding(*noise(bundle.model, lengths)), lengths) for lengths in LENGTHS]
    spelled = _lists(bundle.tokenizer.size)
    sounds = [read_file(file) for file in files]
    announce("loading and running it in transformers")
    outputs = run_transformers(folder, batches=batches, sounds=sounds, spelled=spelled)
    announce("comparing with our model")
    gap, frames = _gap(bundle, batches, outputs)
    within = f"{TOLERANCE:g}"
    if not gap <= TOLERANCE:
        announce("comparing both with double precision")
        errors = _errors(bundle, batches, outputs)
        if not errors.is_rounding:
            raise ExportError(
                f"`ParakeetForCTC` must give our log-probabilities within {TOLERANCE:g} of 1 +"
                f" their size, but they differ by {gap:.3g}; from double precision ours are"
                f" {errors.torch:.2g} away, its own {errors.other:.2g}."
            )
        within = f"rounding, {errors.torch:.1e} from double precision, its own {errors.other:.1e},"
    _check_spelling(bundle, spelled, outputs)
    texts = Texts.of(
        files,
        tuple(transcribe_waveform(bundle, sound) for sound in sounds),
        alone=outputs.alone,
        together=outputs.together,
        version=outputs.version,
    )
    check_equal(texts, "transformers")
    loads = (
        f"transformers {outputs.version}, in a process of its own, loads it by `ParakeetForCTC`."
    )
    gives = (
        f"Its log-probabilities are ours within {within} of 1 + their size on ragged batches"
        f" of 0.1 to 20 s ({gap:.1e} at most, {frames} frames)."
    )
    says = (
        f"With its processor it gives the transcripts of `transcribe` for {texts.equal} of"
        f" {len(files)} sounds, {texts.with_words} of them with words, alone and in batches."
    )
    return [loads, gives, says, f"{len(spelled)} lists of tokens are decoded to the same text."]


def _check_spelling(
    bundle: Bundle, spelled: Sequence[Sequence[int]], outputs: TransformersOutputs
) -> None:
    for ids, text in zip(spelled, outputs.spelled, strict=True):
        if one_space(text) != bundle.tokenizer.decode(ids):
            raise ExportError(
                f"transformers must decode tokens to the same text, but gives `{one_space(text)}`"
                f" instead of `{bundle.tokenizer.decode(ids)}`; `--to onnx` exports them unchanged."
            )


@torch.inference_mode()
def _gap(
    bundle: Bundle,
    batches: Sequence[tuple[Float[Tensor, "_ _ mels"], Sequence[int]]],
    outputs: TransformersOutputs,
) -> tuple[float, int]:
    """Return the largest difference of log-probabilities over 1 + their size, and the frames."""
    gap, frames = 0.0, 0
    for (features, lengths), log_probabilities in zip(
        batches, outputs.log_probabilities, strict=True
    ):
        expected = bundle.model(features, torch.tensor(list(lengths)))
        right = expected.logits.log_softmax(-1)[expected.is_frame]
        # Rounding grows with a number's size: 1e-5 at 0, but 2.1e-4 is allowed at -20.
        apart = (log_probabilities[expected.is_frame] - right).abs() / (1 + right.abs())
        gap = max(gap, float(apart.nan_to_num(nan=math.inf).max()))
        frames += len(right)
    return gap, frames


def _errors(
    bundle: Bundle,
    batches: Sequence[tuple[Float[Tensor, "_ _ mels"], Sequence[int]]],
    outputs: TransformersOutputs,
) -> Errors:
    """Return the errors of our model and of transformers against double precision."""
    errors = Errors()
    for (features, lengths), log_probabilities in zip(
        batches, outputs.log_probabilities, strict=True
    ):
        num_frames = torch.tensor(list(lengths))
        real = bundle.model.shape.frontend_spec.output_frames(num_frames)
        is_frame = torch.arange(log_probabilities.shape[1]) < real[:, None]
        speech = (features, num_frames)
        other = log_probabilities[is_frame]
        errors = errors.combine(
            rounding_errors(bundle.model, speech, other, is_frame, is_relative=True)
        )
    return errors


def _zero_padding(
    features: Float[Tensor, "batch mel_frames mels"], num_frames: Tensor
) -> Float[Tensor, "batch mel_frames mels"]:
    """Set frames beyond each utterance to 0, as the processor does."""
    is_frame = torch.arange(features.shape[1]) < num_frames[:, None]
    return features * is_frame[:, :, None]


def _lists(size: int) -> list[list[int]]:
    """Return lists of random tokens without the blank."""
    rng = np.random.default_rng(0)
    return [
        # From 1 on, as 0 is the blank; a list may be empty.
        rng.integers(1, size, rng.integers(0, _LONGEST)).tolist() if size > 1 else []
        for _ in range(_LISTS)
    ]
