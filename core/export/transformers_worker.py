"""The only file that runs transformers: a program that transcribes sounds and decodes tokens.

On stdin a JSON object: the `folder` of an export, the `class` that loads it, a folder `scratch`,
how many `sounds` (samples at 16 kHz) and `batches` (features and their lengths; of a transducer the
tokens, too) its file of NumPy arrays `given.npz` holds, and lists of tokens to be `spelled`. The
batches' log-probabilities become `made.npz` there. Last on stdout a JSON object: the texts of each
sound `alone`, of all `together` in batches, the `frames` of the tokens of each sound alone, which
transducers say, the texts of the tokens, and the `version`.

It is a program of its own, like a user's, and imports nothing of ours.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

_SAMPLE_RATE_HZ = 16_000
_AT_ONCE = 8
_NOTHING_FOREIGN: Any = {"trust_remote_code": False, "local_files_only": True}
"""No code of the folder is run, and nothing is downloaded."""


def main() -> None:
    request = json.load(sys.stdin)
    scratch = Path(request["scratch"])
    kind = getattr(transformers, request["class"])
    loaded: Any = kind.from_pretrained(
        request["folder"], output_loading_info=True, use_safetensors=True, **_NOTHING_FOREIGN
    )
    model, loading_info = loaded  # a pair, with `output_loading_info`
    # from_pretrained fills what is missing with random numbers and only warns.
    strays = [name for names in loading_info.values() for name in names]
    if strays:
        sys.exit(f"tensors are missing, unknown or of another shape: {strays[:3]}")
    processor = transformers.AutoProcessor.from_pretrained(request["folder"], **_NOTHING_FOREIGN)
    with np.load(scratch / "given.npz") as arrays, torch.inference_mode():
        sounds = [arrays[f"sound{i}"] for i in range(request["sounds"])]
        logs: dict[str, Any] = {
            f"logs{i}": _logs(model, arrays, i) for i in range(request["batches"])
        }
        alone = [pair for sound in sounds for pair in _transcribe(model, processor, [sound])]
        # Sounds of a batch are padded to its longest: this is what `together` tests.
        parts = (sounds[begin : begin + _AT_ONCE] for begin in range(0, len(sounds), _AT_ONCE))
        together = [text for part in parts for text, _ in _transcribe(model, processor, part)]
    np.savez(scratch / "made.npz", **logs)
    answer = {
        "alone": [text for text, _ in alone],
        "frames": [frames for _, frames in alone],
        "together": together,
        "spelled": [_decode(processor, ids) for ids in request["spelled"]],
        "version": transformers.__version__,
    }
    sys.stdout.write(f"\n{json.dumps(answer)}\n")


def _logs(model: Any, arrays: Any, number: int) -> np.ndarray:
    features = torch.from_numpy(arrays[f"features{number}"])
    lengths = torch.from_numpy(arrays[f"frames{number}"])
    # (batch, frames of features): true up to each utterance's length.
    mask = torch.arange(features.shape[1]) < lengths[:, None]
    tokens = {}
    if f"tokens{number}" in arrays:
        tokens["decoder_input_ids"] = torch.from_numpy(arrays[f"tokens{number}"])
    logits = model(features, attention_mask=mask, **tokens).logits
    # Of tokens, and of a TDT's durations: each has a distribution of its own.
    size = model.config.vocab_size
    parts = [part for part in (logits[..., :size], logits[..., size:]) if part.shape[-1]]
    return torch.cat([part.log_softmax(-1) for part in parts], -1).numpy()


def _transcribe(
    model: Any, processor: Any, sounds: list[np.ndarray]
) -> list[tuple[str, list[int]]]:
    """Return each text, and of a transducer the frames of its tokens."""
    output = model.generate(**processor(sounds, sampling_rate=_SAMPLE_RATE_HZ))
    tokens = getattr(output, "sequences", output)
    texts = processor.batch_decode(tokens, skip_special_tokens=True)
    if not hasattr(output, "durations"):
        return [(text, []) for text in texts]
    # Durations 0 2 0 1 of four steps: they were made at frames 0, 0, 2 and 2.
    frames = output.durations.cumsum(-1) - output.durations
    is_token = tokens != model.config.blank_token_id
    own = [row[chosen].tolist() for row, chosen in zip(frames, is_token, strict=True)]
    return list(zip(texts, own, strict=True))


def _decode(processor: Any, ids: list[int]) -> str:
    # Without grouping: merging repeats, as for CTC, would turn 5 5 into 5.
    return processor.decode(ids, skip_special_tokens=True, group_tokens=False)


if __name__ == "__main__":
    main()
