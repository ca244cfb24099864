"""The only file that drives eSpeak NG: a program that speaks what it reads.

On stdin a JSON object: `library` and `data` (paths), `seed`, and `requests`, each with `voice`,
`text`, `words_per_minute`, `pitch`. On stdout for each request the number of its samples (4 bytes,
little endian) and the samples (16 bit, mono, 22.05 kHz).

eSpeak's voices flutter and breathe by chance, and what one sentence leaves behind changes the next:
the same words sound the same again only from a fresh process with the same seed and the same
sentences before them. Hence a program of its own, which imports nothing but the standard library.
"""

import ctypes
import json
import sys
from typing import Any

SAMPLE_RATE_HZ = 22_050

_SYNCHRONOUS = 2  # samples go to the callback, in this thread
_RATE, _VOLUME, _PITCH = 1, 2, 3
_UTF8 = 1
_VOLUME_PERCENT = 60  # at 100 the loudest voices clip

_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


def main() -> None:
    order = json.load(sys.stdin)
    library = ctypes.CDLL(order["library"])
    if library.espeak_Initialize(_SYNCHRONOUS, 0, order["data"].encode(), 0) != SAMPLE_RATE_HZ:
        sys.exit(f"eSpeak NG must start with its data in `{order['data']}`, but does not.")
    samples = bytearray()

    def take(wave: Any, num_samples: int, _events: Any) -> int:
        if wave and num_samples > 0:
            samples.extend(ctypes.string_at(wave, 2 * num_samples))
        return 0

    # ctypes holds no reference to it: without this name it would be freed while eSpeak calls it.
    callback = _Callback(take)
    library.espeak_SetSynthCallback(callback)
    library.espeak_ng_SetRandSeed(ctypes.c_long(order["seed"]))
    for request in order["requests"]:
        samples.clear()
        _say(library, request)
        sys.stdout.buffer.write((len(samples) // 2).to_bytes(4, "little") + samples)


def _say(library: ctypes.CDLL, request: dict[str, Any]) -> None:
    if library.espeak_SetVoiceByName(request["voice"].encode()) != 0:
        sys.exit(f"eSpeak NG must have the voice `{request['voice']}`, but has not.")
    library.espeak_SetParameter(_RATE, request["words_per_minute"], 0)
    library.espeak_SetParameter(_PITCH, request["pitch"], 0)
    library.espeak_SetParameter(_VOLUME, _VOLUME_PERCENT, 0)
    text = request["text"].encode()
    # The size counts the zero byte that ends a C string.
    if library.espeak_Synth(text, len(text) + 1, 0, 1, 0, _UTF8, None, None) != 0:
        sys.exit(f"eSpeak NG must speak `{request['text']}`, but does not.")
    library.espeak_Synchronize()


if __name__ == "__main__":
    main()
