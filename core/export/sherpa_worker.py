"""The only file that drives sherpa-onnx: a program that hears what it is given.

On stdin a JSON object: `loader` (a method of `OfflineRecognizer`), its `arguments`, and `sounds` (a
file of NumPy arrays, samples at 16 kHz). Last on stdout a JSON object: the texts of each sound
`alone`, of all `together` in batches, and sherpa-onnx's `version`.

What sherpa-onnx cannot load ends its process: hence a program of its own, which imports nothing of
ours.
"""

import json
import sys
from typing import Any

import numpy as np
import sherpa_onnx

_SAMPLE_RATE_HZ = 16_000
_AT_ONCE = 8


def main() -> None:
    order = json.load(sys.stdin)
    recognizer = getattr(sherpa_onnx.OfflineRecognizer, order["loader"])(**order["arguments"])
    with np.load(order["sounds"]) as arrays:
        sounds = [arrays[name] for name in arrays.files]
    alone = [text for sound in sounds for text in _heard(recognizer, [sound])]
    parts = (sounds[begin : begin + _AT_ONCE] for begin in range(0, len(sounds), _AT_ONCE))
    together = [text for part in parts for text in _heard(recognizer, part)]
    found = {"alone": alone, "together": together, "version": sherpa_onnx.__version__}
    sys.stdout.write(f"\n{json.dumps(found)}\n")


def _heard(recognizer: Any, sounds: list[np.ndarray]) -> list[str]:
    streams = []
    for sound in sounds:
        streams.append(recognizer.create_stream())
        streams[-1].accept_waveform(_SAMPLE_RATE_HZ, sound)
    recognizer.decode_streams(streams)
    return [stream.result.text for stream in streams]


if __name__ == "__main__":
    main()
