"""Damaged manifests of lhotse and NeMo: utterances or one clear error; nothing run or fetched.

The same cases in every run; `BAD_INPUT=10 pytest tests/security/test_manifest_fuzz.py` takes ten
times as many. What each field may be is tested with the reader itself.
"""

import gzip
import json
import os
import random

import numpy as np
import pytest
import soundfile

from core.config.trial import CorpusConfig
from core.data.audio import read_cut
from core.data.audio_decoding import CorpusError
from core.data.corpus import open_split

TIMES = int(os.environ.get("BAD_INPUT", "1"))
PAYLOADS = [
    *("touch mark; cat a.wav", "pipe:touch mark", "http://127.0.0.1:1/a.wav", "/etc/passwd"),
    *("../a.wav", "a.wav|touch mark", "$(touch mark)", "s3://bucket/a.wav", "-", "", "a.wav\0"),
    *("command", "url", "file", "memory", "shar", "MixedCut", "PaddingCut", "DataCut"),
    *(None, True, -1, 0, 1, 2**63, 1e308, float("nan"), 0.5, [], {}, [[]], {"x": 1}, "\x1b[2J"),
    {"type": "command", "channels": [0], "source": "touch mark; cat a.wav"},
    {"type": "url", "channels": [0], "source": "http://127.0.0.1:1/a.wav"},
    {"name": "ReverbWithImpulseResponse", "kwargs": {"rir": "pipe:touch mark"}},
    {"py/object": "os.system", "__reduce__": ["touch mark"]},
]
RECORDING = {
    "id": "r",
    "sources": [{"type": "file", "channels": [0], "source": "a.wav"}],
    "sampling_rate": 16_000,
    "num_samples": 8_000,
    "duration": 0.5,
    "channel_ids": [0],
}
SPOKEN = {"id": "u", "recording_id": "r", "start": 0.0, "duration": 0.5, "text": "GO"}
CUT = {"id": "c", "start": 0.0, "duration": 0.5, "channel": 0, "type": "MonoCut"}
CUT |= {"supervisions": [SPOKEN | {"channel": 0}], "recording": RECORDING}
NEMO = {"audio_filepath": "a.wav", "duration": 0.5, "text": "go"}
MANIFESTS = {
    "test.jsonl": ("test.jsonl", [CUT, CUT | {"id": "d"}]),
    "packed": ("x_cuts_test.jsonl.gz", [CUT, CUT | {"id": "d"}]),
    "recordings": ("x_recordings_test.jsonl", [RECORDING]),
    "nemo": ("test_manifest.json", [NEMO, NEMO | {"offset": 0.1, "duration": 0.2}]),
}


def put_payload(value, rng):
    """The value with a payload at one of its places."""
    value = json.loads(json.dumps(value))
    places = []

    def walk(inner):
        for key in inner if isinstance(inner, dict) else range(len(inner)):
            places.append((inner, key))
            if isinstance(inner[key], dict | list):
                walk(inner[key])

    walk(value)
    inner, key = rng.choice(places)
    inner[key] = rng.choice(PAYLOADS)
    if rng.random() < 0.2 and isinstance(inner, dict):
        inner[rng.choice(["transforms", "source", "type", "features"])] = rng.choice(PAYLOADS)
    return value


def slip(text, rng):
    """The bytes with one slip."""
    at, size = rng.randrange(len(text)), rng.choice([1, 2, 8, 40])
    new = rng.choice([b"", b"\xff", b"{", b'"', b"\0", b"\xef\xbb\xbf", b"9" * 400, b"[" * 5000])
    return text[:at] + new + text[at + size :]


def error_of(config, folder):
    try:
        for cut in open_split(config, folder, "test"):
            read_cut(cut)
    except Exception as error:  # noqa: BLE001  # which one is what is asked
        return error
    return None


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_damaged_manifest(guard_effects, tmp_path, monkeypatch, kind):
    name, lines = MANIFESTS[kind]
    monkeypatch.chdir(tmp_path)  # where a payload would leave its mark
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    soundfile.write(corpus / "a.wav", np.full(8_000, 0.1), 16_000)
    if kind == "recordings":
        spoken = json.dumps(SPOKEN | {"channel": 0})
        (corpus / "x_supervisions_test.jsonl").write_text(f"{spoken}\n")
    config = CorpusConfig(name=str(corpus))
    num_refused = 0

    with guard_effects(tmp_path):
        for seed in range(100 * TIMES):
            rng = random.Random(seed)
            changed = [put_payload(lines[0], rng), *lines[1:]]
            text = "".join(f"{json.dumps(line)}\n" for line in changed).encode()
            text = slip(text, rng) if rng.random() < 0.3 else text
            packed = gzip.compress(text) if name.endswith(".gz") else text
            (corpus / name).write_bytes(packed)
            error = error_of(config, tmp_path)
            assert error is None or isinstance(error, CorpusError), f"seed {seed}: {error!r}"
            assert len(str(error).splitlines()) == 1, f"seed {seed}: {error}"
            num_refused += error is not None
    assert num_refused > 10 * TIMES
    assert not (tmp_path / "mark").exists()
