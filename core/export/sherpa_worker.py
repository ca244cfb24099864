"""The only file that imports sherpa-onnx: a program that transcribes sounds.

On stdin a JSON object: `loader` (a method of `OfflineRecognizer`), its `arguments`, and `sounds` (a
file of NumPy arrays, samples at 16 kHz). Last on stdout a JSON object: the texts of each sound
`alone`, of all `together` in batches, the `times` of the tokens of each sound alone in seconds, and
sherpa-onnx's `version`.

sherpa-onnx exits on files that it cannot load, so this is a program of its own, which imports
nothing of ours.
"""

import json
import sys
from typing import Any

import numpy as np
import sherpa_onnx

_SAMPLE_RATE_HZ = 16_000
_AT_ONCE = 8


def main() -> None:
    request = json.load(sys.stdin)
    recognizer = getattr(sherpa_onnx.OfflineRecognizer, request["loader"])(**request["arguments"])
    with np.load(request["sounds"]) as arrays:
        sounds = [arrays[name] for name in arrays.files]
    alone = [result for sound in sounds for result in _recognize(recognizer, [sound])]
    # Sounds of a batch are padded to its longest: this is what `together` tests.
    parts = (sounds[begin : begin + _AT_ONCE] for begin in range(0, len(sounds), _AT_ONCE))
    together = [result for part in parts for result in _recognize(recognizer, part)]
    answer = {
        "alone": [result.text for result in alone],
        "together": [result.text for result in together],
        "times": [list(result.timestamps) for result in alone],
        "version": sherpa_onnx.__version__,
    }
    sys.stdout.write(f"\n{json.dumps(answer)}\n")


def _recognize(recognizer: Any, sounds: list[np.ndarray]) -> list[Any]:
    streams = []
    for sound in sounds:
        streams.append(recognizer.create_stream())
        streams[-1].accept_waveform(_SAMPLE_RATE_HZ, sound)
    recognizer.decode_streams(streams)
    return [stream.result for stream in streams]


if __name__ == "__main__":
    main()
