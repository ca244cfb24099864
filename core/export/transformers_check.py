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
from jaxtyping import Float, Int
from torch import Tensor

from core.bundle import Bundle
from core.conformer.model import Conformer
from core.data.audio import read_file
from core.decoders.greedy import MOST_SYMBOLS
from core.decoders.places import Places
from core.export import transformers_worker
from core.export.parakeet import class_name
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
_TOKENS = (1, 2)
"""Along which a transducer's lattice is compared."""
MOST_OF_TDT = 100
"""Tokens at one frame, instead of `transcribe`'s ten: transformers has no limit for TDT."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Features to compare log-probabilities on."""

    features: Float[Tensor, "batch mel_frames mels"]
    lengths: Sequence[int]
    """Real frames of each."""
    places: Places | None
    """All places along `_TOKENS`, of a transducer."""

    @classmethod
    def of(cls, model: Conformer, lengths: Sequence[int]) -> "Batch":
        """Return a batch of noise, with padding of 0 as the processor has it."""
        features = _zero_padding(*noise(model, lengths))
        return cls.of_features(model, features, lengths)

    @classmethod
    def of_features(
        cls,
        model: Conformer,
        features: Float[Tensor, "batch mel_frames mels"],
        lengths: Sequence[int],
    ) -> "Batch":
        """Return a batch of these features."""
        frames = model.frontend_spec.output_frames(torch.tensor(list(lengths)))
        places = None if model.transducer is None else _all_places(frames, model.vocabulary)
        return cls(features=features, lengths=lengths, places=places)

    def real_rows(
        self, log_probs: Float[Tensor, "batch time *places outputs"], model: Conformer
    ) -> Float[Tensor, "distributions outputs"]:
        """Return the rows of real frames, in the order of `Output.log_probs`."""
        frames = model.frontend_spec.output_frames(torch.tensor(list(self.lengths)))
        is_frame = torch.arange(log_probs.shape[1]) < frames[:, None]
        return log_probs[is_frame].flatten(0, -2)


def _all_places(num_frames: Int[Tensor, " batch"], vocabulary: int) -> Places:
    tokens = torch.tensor([token % vocabulary for token in _TOKENS]).repeat(len(num_frames), 1)
    index = [
        torch.cartesian_prod(
            torch.tensor([row]), torch.arange(int(count)), torch.arange(len(_TOKENS) + 1)
        )
        for row, count in enumerate(num_frames)
    ]
    return Places(tokens=tokens, index=torch.cat(index))


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformersOutputs:
    """The outputs of transformers for features, for sounds, and for tokens."""

    log_probabilities: tuple[Float[Tensor, "distributions outputs"], ...]
    """Log-probabilities of each batch at real frames, the blank first, as in our models."""
    alone: tuple[str, ...]
    together: tuple[str, ...]
    """Transcripts of the same sounds in padded batches."""
    frames: tuple[tuple[int, ...], ...]
    """Of a transducer, at which frame each token of a sound alone was said."""
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
    model: Conformer,
    *,
    batches: Sequence[Batch] = (),
    sounds: Sequence[Float[Tensor, " _"]] = (),
    spelled: Sequence[Sequence[int]] = (),
) -> TransformersOutputs:
    """Run an export in transformers, in a process of its own.

    Args:
        folder: of the export.
        model: that was exported.
        batches: to compute log-probabilities of.
        sounds: at 16 kHz.
        spelled: lists of token ids, to be decoded.

    Raises:
        ExportError: if transformers is not installed, or cannot load or run the export.
    """
    needs_transformers()
    with TemporaryDirectory() as scratch:
        arrays: dict[str, Any] = {f"sound{i}": sound.numpy() for i, sound in enumerate(sounds)}
        for i, batch in enumerate(batches):
            arrays |= _arrays(batch, i, model.vocabulary)
        np.savez(Path(scratch) / GIVEN, **arrays)
        request = {
            "folder": str(folder),
            "class": class_name(model.shape),
            "scratch": scratch,
            "sounds": len(sounds),
            "batches": len(batches),
            # Their ids are ours less one, as their blank comes last.
            "spelled": [[int(i) - 1 for i in ids] for ids in spelled],
        }
        answer = _run_worker(request, folder)
        with np.load(Path(scratch) / MADE) as outputs:
            rows = [
                batch.real_rows(torch.from_numpy(outputs[f"logs{i}"]), model)
                for i, batch in enumerate(batches)
            ]
    texts = {name: tuple(answer[name]) for name in ("alone", "together", "spelled")}
    by_ours = tuple(_blank_first(own, model.vocabulary) for own in rows)
    return TransformersOutputs(
        log_probabilities=by_ours,
        version=answer["version"],
        frames=tuple(map(tuple, answer["frames"])),
        **texts,
    )


def _arrays(batch: Batch, number: int, vocabulary: int) -> dict[str, Any]:
    arrays = {
        f"features{number}": batch.features.numpy(),
        f"frames{number}": np.array(batch.lengths),
    }
    if batch.places is not None:
        # Before the first token a predictor reads the blank, which is their last token.
        tokens = torch.nn.functional.pad(batch.places.tokens, (1, 0))
        arrays[f"tokens{number}"] = ((tokens - 1) % vocabulary).numpy()
    return arrays


def _blank_first(
    rows: Float[Tensor, "distributions outputs"], vocabulary: int
) -> Float[Tensor, "distributions outputs"]:
    # Columns 1 2 0 of theirs become 0 1 2; a TDT's durations behind them stay.
    tokens, durations = rows[:, :vocabulary], rows[:, vocabulary:]
    return torch.cat((tokens.roll(1, dims=-1), durations), -1)


def _run_worker(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    rule = f"transformers must load and run `{folder.name}` by `{request['class']}`"
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
    model, name = bundle.model, class_name(bundle.model.shape)
    batches = [Batch.of(model, lengths) for lengths in LENGTHS]
    spelled = _lists(bundle.tokenizer.size)
    sounds = [read_file(file) for file in files]
    announce("loading and running it in transformers")
    outputs = run_transformers(folder, model, batches=batches, sounds=sounds, spelled=spelled)
    announce("comparing with our model")
    gives = _check_log_probs(model, batches, outputs, announce)
    _check_spelling(bundle, spelled, outputs)
    is_tdt = model.transducer is not None and bool(model.transducer.joint.durations)
    most = MOST_OF_TDT if is_tdt else MOST_SYMBOLS
    texts = Texts.of(
        files,
        tuple(transcribe_waveform(bundle, sound, most_symbols=most) for sound in sounds),
        alone=outputs.alone,
        together=outputs.together,
        version=outputs.version,
    )
    check_equal(texts, "transformers")
    loads = f"transformers {outputs.version}, in a process of its own, loads it by `{name}`."
    says = (
        f"With its processor it gives the transcripts of `transcribe` for {texts.equal} of"
        f" {len(files)} sounds, {texts.with_words} of them with words, alone and in batches."
    )
    return [loads, gives, says, f"{len(spelled)} lists of tokens are decoded to the same text."]


def _check_log_probs(
    model: Conformer, batches: Sequence[Batch], outputs: TransformersOutputs, announce: Announce
) -> str:
    """Compare log-probabilities with ours; return a sentence about them."""
    gap, count = _gap(model, batches, outputs)
    within = f"{TOLERANCE:g}"
    if not gap <= TOLERANCE:
        announce("comparing both with double precision")
        errors = _errors(model, batches, outputs)
        if not errors.is_rounding:
            raise ExportError(
                f"`{class_name(model.shape)}` must give our log-probabilities within {TOLERANCE:g}"
                f" of 1 + their size, but they differ by {gap:.3g}; from double precision ours are"
                f" {errors.torch:.2g} away, its own {errors.other:.2g}."
            )
        within = f"rounding, {errors.torch:.1e} from double precision, its own {errors.other:.1e},"
    unit = "places" if model.transducer else "frames"
    return (
        f"Its log-probabilities are ours within {within} of 1 + their size on ragged batches"
        f" of 0.1 to 20 s ({gap:.1e} at most, {count} {unit})."
    )


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
    model: Conformer, batches: Sequence[Batch], outputs: TransformersOutputs
) -> tuple[float, int]:
    """Return the largest difference of log-probabilities over 1 + their size, and their number."""
    gap, count = 0.0, 0
    for batch, theirs in zip(batches, outputs.log_probabilities, strict=True):
        num_frames = torch.tensor(list(batch.lengths))
        right = model(batch.features, num_frames, places=batch.places).log_probs()
        # Rounding grows with a number's size: 1e-5 at 0, but 2.1e-4 is allowed at -20.
        apart = (theirs - right).abs() / (1 + right.abs())
        gap = max(gap, float(apart.nan_to_num(nan=math.inf).max()))
        count += len(right)
    return gap, count


def _errors(model: Conformer, batches: Sequence[Batch], outputs: TransformersOutputs) -> Errors:
    """Return the errors of our model and of transformers against double precision."""
    errors = Errors()
    for batch, theirs in zip(batches, outputs.log_probabilities, strict=True):
        speech = (batch.features, torch.tensor(list(batch.lengths)))
        errors = errors.combine(
            rounding_errors(model, speech, theirs, places=batch.places, is_relative=True)
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
