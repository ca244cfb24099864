"""What transformers makes of an export, and whether that is what our model does.

It is asked in a process of its own, as a user's program would ask it; the package is the extra
`transformers`.
"""

import importlib.util
import json
import math
import os
import subprocess
import sys
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
from core.inference.graph_interface import ExportError
from core.inference.recognizer import transcribe_waveform
from core.stages import Announce, be_silent

TOLERANCE = 1e-5
"""Of log-probabilities in floats: of their size, and beside."""
LENGTHS = ((10,), (203, 203), (400, 399, 12, 7, 100), (2000,))
"""Of batches, in mel frames: 0.1 to 20 s, ragged and not; of no frame it can make nothing."""
GIVEN, MADE = "given.npz", "made.npz"
"""Arrays on their way to the process, and back."""
_LISTS, _LONGEST = 100, 12
"""Of tokens, to be spelled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformersOutputs:
    """What transformers makes of some features, of some sounds, and of some tokens."""

    log_probabilities: tuple[Float[Tensor, "_ _ vocabulary"], ...]
    """Of each batch, the blank first, as ours are."""
    alone: tuple[str, ...]
    together: tuple[str, ...]
    """Of the same sounds in batches, padded."""
    spelled: tuple[str, ...]
    """The text of each list of tokens."""
    version: str


def needs_transformers() -> None:
    """Check that transformers is there.

    Raises:
        ExportError: if it is not, with what installs it.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ExportError(
            "An export to transformers must have the package `transformers` to verify it with, but"
            ' it is not installed; `pip install "conformer-sweep[transformers]"` installs it.'
        )


def run_transformers(
    folder: Path,
    *,
    batches: Sequence[tuple[Float[Tensor, "_ _ mels"], Sequence[int]]] = (),
    sounds: Sequence[Float[Tensor, " _"]] = (),
    spelled: Sequence[Sequence[int]] = (),
) -> TransformersOutputs:
    """What an export makes of these, loaded in a process of its own.

    Args:
        folder: of the export.
        batches: features, and how many frames of each are real.
        sounds: at 16 kHz.
        spelled: lists of tokens by our ids.

    Raises:
        ExportError: if transformers is not installed, or cannot load or run the export.
    """
    needs_transformers()
    with TemporaryDirectory() as scratch:
        arrays: dict[str, Any] = {f"sound{i}": sound.numpy() for i, sound in enumerate(sounds)}
        for i, (features, num_frames) in enumerate(batches):
            arrays |= {f"features{i}": features.numpy(), f"frames{i}": np.array(num_frames)}
        np.savez(Path(scratch) / GIVEN, **arrays)
        order = {
            "folder": str(folder),
            "scratch": scratch,
            "sounds": len(sounds),
            "batches": len(batches),
            "spelled": [[int(i) - 1 for i in ids] for ids in spelled],
        }
        told = _asked(order, folder)
        with np.load(Path(scratch) / MADE) as heard:
            logs = [torch.from_numpy(heard[f"logs{i}"]) for i in range(len(batches))]
    texts = {name: tuple(told[name]) for name in ("alone", "together", "spelled")}
    by_ours = tuple(log.roll(1, dims=-1) for log in logs)
    return TransformersOutputs(log_probabilities=by_ours, version=told["version"], **texts)


def _asked(order: dict[str, Any], folder: Path) -> dict[str, Any]:
    ended = subprocess.run(  # noqa: S603 - this interpreter, our own file
        [sys.executable, "-P", transformers_worker.__file__],
        input=json.dumps(order).encode(),
        capture_output=True,
        check=False,
        # What is not in the folder must not come from elsewhere.
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
    )
    if ended.returncode != 0:
        reason = ended.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ExportError(
            f"transformers must load and run `{folder.name}` by `ParakeetForCTC`, but its process"
            f" ended with {ended.returncode} instead ({reason[:300]})."
        )
    return json.loads(ended.stdout.decode().strip().rpartition("\n")[2])


def check_export(
    bundle: Bundle, folder: Path, files: Sequence[Path], *, announce: Announce = be_silent
) -> list[str]:
    """Compare an export with its model; what speaks for it, a sentence each.

    Args:
        bundle: the model.
        folder: of the export.
        files: sounds.
        announce: told what begins.

    Raises:
        CorpusError: naming a file that cannot be heard.
        ExportError: if log-probabilities, the text of a file or that of a token differ.
    """
    batches = [(_silenced(*noise(bundle.model, lengths)), lengths) for lengths in LENGTHS]
    spelled = _lists(bundle.tokenizer.size)
    sounds = [read_file(file) for file in files]
    announce("loading and running it in transformers")
    heard = run_transformers(folder, batches=batches, sounds=sounds, spelled=spelled)
    announce("comparing with our model")
    gap, frames = _gap(bundle, batches, heard)
    within = f"{TOLERANCE:g}"
    if not gap <= TOLERANCE:
        announce("comparing both with double precision")
        errors = _errors(bundle, batches, heard)
        if not errors.is_rounding:
            raise ExportError(
                f"`ParakeetForCTC` must give our log-probabilities within {TOLERANCE:g} of 1 +"
                f" their size, but they differ by {gap:.3g}; from double precision ours are"
                f" {errors.torch:.2g} away, its own {errors.other:.2g}."
            )
        within = f"rounding, {errors.torch:.1e} from double precision, its own {errors.other:.1e},"
    _check_spelling(bundle, spelled, heard)
    texts = Texts.of(
        files,
        tuple(transcribe_waveform(bundle, sound) for sound in sounds),
        alone=heard.alone,
        together=heard.together,
        version=heard.version,
    )
    check_equal(texts, "transformers")
    loads = f"transformers {heard.version}, in a process of its own, loads it by `ParakeetForCTC`."
    gives = (
        f"Its log-probabilities are ours within {within} of 1 + their size on ragged batches"
        f" of 0.1 to 20 s ({gap:.1e} at most, {frames} frames)."
    )
    says = (
        f"Its processor and it hear {texts.equal} of {len(files)} sounds as `transcribe` does,"
        f" {texts.with_words} of them with words, alone and in batches."
    )
    return [loads, gives, says, f"{len(spelled)} lists of tokens are spelled alike."]


def _check_spelling(
    bundle: Bundle, spelled: Sequence[Sequence[int]], heard: TransformersOutputs
) -> None:
    for ids, text in zip(spelled, heard.spelled, strict=True):
        if one_space(text) != bundle.tokenizer.decode(ids):
            raise ExportError(
                f"transformers must spell tokens as ours are, but says `{one_space(text)}` instead"
                f" of `{bundle.tokenizer.decode(ids)}`; `--to onnx` takes them as they are."
            )


@torch.inference_mode()
def _gap(
    bundle: Bundle,
    batches: Sequence[tuple[Float[Tensor, "_ _ mels"], Sequence[int]]],
    heard: TransformersOutputs,
) -> tuple[float, int]:
    """The largest difference of a log-probability by 1 + its size, and frames compared."""
    gap, frames = 0.0, 0
    for (features, lengths), found in zip(batches, heard.log_probabilities, strict=True):
        expected = bundle.model(features, torch.tensor(list(lengths)))
        right = expected.logits.log_softmax(-1)[expected.is_frame]
        apart = (found[expected.is_frame] - right).abs() / (1 + right.abs())
        gap = max(gap, float(apart.nan_to_num(nan=math.inf).max()))
        frames += len(right)
    return gap, frames


def _errors(
    bundle: Bundle,
    batches: Sequence[tuple[Float[Tensor, "_ _ mels"], Sequence[int]]],
    heard: TransformersOutputs,
) -> Errors:
    """Of ours and theirs, against double precision."""
    errors = Errors()
    for (features, lengths), found in zip(batches, heard.log_probabilities, strict=True):
        num_frames = torch.tensor(list(lengths))
        real = bundle.model.shape.frontend_spec.output_frames(num_frames)
        is_frame = torch.arange(found.shape[1]) < real[:, None]
        speech = (features, num_frames)
        other = found[is_frame]
        errors = errors.joined(
            rounding_errors(bundle.model, speech, other, is_frame, is_relative=True)
        )
    return errors


def _silenced(
    features: Float[Tensor, "batch mel_frames mels"], num_frames: Tensor
) -> Float[Tensor, "batch mel_frames mels"]:
    """As its processor pads: its first convolution hears what lies beyond an utterance."""
    is_frame = torch.arange(features.shape[1]) < num_frames[:, None]
    return features * is_frame[:, :, None]


def _lists(size: int) -> list[list[int]]:
    """Tokens by chance, of all but the blank."""
    chance = np.random.default_rng(0)
    return [
        chance.integers(1, size, chance.integers(0, _LONGEST)).tolist() if size > 1 else []
        for _ in range(_LISTS)
    ]
