"""The only file that imports onnx-asr: a program that transcribes sounds.

On stdin a JSON object: the `folder` of an export, the `kind` of its model, its `quantization`
(`int8` or null), and `sounds` (a file of NumPy arrays, samples at 16 kHz). Last on stdout a JSON
object: the texts of each sound `alone`, of all `together` in batches, the `times` of the tokens of
each sound alone in seconds, and onnx-asr's `version`.

It is a program of its own, which imports nothing of ours.
"""

import importlib.metadata
import json
import sys
from typing import Any

import numpy as np
import onnx_asr

_SAMPLE_RATE_HZ = 16_000
_AT_ONCE = 8


def main() -> None:
    request = json.load(sys.stdin)
    model = onnx_asr.load_model(
        request["kind"],
        request["folder"],
        quantization=request["quantization"],
        providers=["CPUExecutionProvider"],
    )
    with np.load(request["sounds"]) as arrays:
        sounds = [arrays[name] for name in arrays.files]
    timed = model.with_timestamps()
    alone = [result for sound in sounds for result in _recognize(timed, [sound])]
    # Sounds of a batch are padded to its longest: this is what `together` tests.
    parts = (sounds[begin : begin + _AT_ONCE] for begin in range(0, len(sounds), _AT_ONCE))
    together = [text for part in parts for text in _recognize(model, part)]
    answer = {
        "alone": [result.text for result in alone],
        "together": together,
        "times": [list(map(float, result.timestamps or [])) for result in alone],
        "version": importlib.metadata.version("onnx-asr"),
    }
    sys.stdout.write(f"\n{json.dumps(answer)}\n")


def _recognize(model: Any, sounds: list[np.ndarray]) -> list[Any]:
    return list(model.recognize(sounds, sample_rate=_SAMPLE_RATE_HZ))


if __name__ == "__main__":
    main()
