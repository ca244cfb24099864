"""The only file that runs transformers: a program that transcribes sounds and decodes tokens.

On stdin a JSON object: the `folder` of an export, a folder `scratch`, how many `sounds` (samples at
16 kHz) and `batches` (features and their lengths) its file of NumPy arrays `given.npz` holds, and
lists of tokens to be `spelled`. The batches' log-probabilities become `made.npz` there. Last on
stdout a JSON object: the texts of each sound `alone`, of all `together` in batches, of the tokens,
and the `version`.

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
    loaded: Any = transformers.ParakeetForCTC.from_pretrained(
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
        alone = [text for sound in sounds for text in _transcribe(model, processor, [sound])]
        # Sounds of a batch are padded to its longest: this is what `together` tests.
        parts = (sounds[begin : begin + _AT_ONCE] for begin in range(0, len(sounds), _AT_ONCE))
        together = [text for part in parts for text in _transcribe(model, processor, part)]
    np.savez(scratch / "made.npz", **logs)
    answer = {
        "alone": alone,
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
    return model(features, attention_mask=mask).logits.log_softmax(-1).numpy()


def _transcribe(model: Any, processor: Any, sounds: list[np.ndarray]) -> list[str]:
    inputs = processor(sounds, sampling_rate=_SAMPLE_RATE_HZ)
    return processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)


def _decode(processor: Any, ids: list[int]) -> str:
    # Without grouping: merging repeats, as for CTC, would turn 5 5 into 5.
    return processor.decode(ids, skip_special_tokens=True, group_tokens=False)


if __name__ == "__main__":
    main()
