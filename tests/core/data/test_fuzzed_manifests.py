"""Manifests with any of their values replaced by any other: utterances, or one clear line.

`BAD_INPUT=10 pytest ...` takes ten times as many.
"""

import copy
import json
import os

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.config.trial import CorpusConfig
from core.data.audio import read_cut
from core.data.audio_decoding import CorpusError
from core.data.corpus import open_split
from core.data.tokenizer import transcript

TIMES = int(os.environ.get("BAD_INPUT", "1"))
SOURCE = {"type": "file", "channels": [0], "source": "a.wav"}
RECORDING = {
    "id": "r",
    "sources": [SOURCE],
    "sampling_rate": 16_000,
    "num_samples": 8_000,
    "duration": 0.5,
    "channel_ids": [0],
}
REVERB = {"name": "ReverbWithImpulseResponse", "kwargs": {"rir": RECORDING, "rir_channels": [0]}}
SPEED = {"name": "Speed", "kwargs": {"factor": 0.9}}
SUPERVISION = {
    "id": "u",
    "recording_id": "r",
    "start": 0.0,
    "duration": 0.5,
    "channel": 0,
    "text": "GO",
}
CUT = {
    "id": "c",
    "start": 0.0,
    "duration": 0.5,
    "channel": 0,
    "supervisions": [SUPERVISION],
    "recording": {**RECORDING, "transforms": [SPEED, REVERB]},
    "type": "MonoCut",
}
ZEROS = {
    "id": "p",
    "duration": 0.5,
    "sampling_rate": 16_000,
    "feat_value": -23.0,
    "num_samples": 8_000,
}
MIX = {
    "id": "m",
    "type": "MixedCut",
    "tracks": [
        {"cut": {**CUT, "recording": RECORDING}, "type": "MonoCut", "offset": 0.0, "snr": 10},
        {"cut": ZEROS, "type": "PaddingCut", "offset": 0.5},
    ],
    "transforms": [REVERB],
}
NEMO = {"audio_filepath": "a.wav", "duration": 0.25, "offset": 0.25, "text": "GO"}
KINDS = {
    "cut": ("test.jsonl", CUT),
    "mix": ("test.jsonl", MIX),
    "recording": ("recordings_test.jsonl", RECORDING),
    "supervision": ("supervisions_test.jsonl", SUPERVISION),
    "nemo": ("test.json", NEMO),
}

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.integers(-3, 3),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(
        ["command", "url", "memory", "shar", "pipe:touch mark", "http://127.0.0.1:9/a", "-", "~"]
    ),
    st.sampled_from(["/dev/zero", "a.wav\x00", "../a.wav", "MonoCut", "MixedCut", "\x1b[31m", "."]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def ways(value, way=()):
    """Paths to all values inside one."""
    if way:
        yield way
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        if isinstance(inner, dict | list):
            yield from ways(inner, (*way, key))
        else:
            yield (*way, key)


def replace_at(record, way, value, *, is_gone):
    record = copy.deepcopy(record)
    inner = record
    for key in way[:-1]:
        inner = inner[key]
    if is_gone:
        del inner[way[-1]]
    else:
        inner[way[-1]] = value
    return record


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with the audio that the records name, and the whole of each pair."""
    folder = tmp_path_factory.mktemp("fuzzed")
    soundfile.write(folder / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(8_000), 16_000)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=100 * TIMES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data(), value=values, is_gone=st.booleans())
def test_any_value_anywhere_gives_utterances_or_one_clear_line(kind, root, data, value, is_gone):
    name, record = KINDS[kind]
    way = data.draw(st.sampled_from(list(ways(record))))
    changed = replace_at(record, way, value, is_gone=is_gone)
    for file in root.glob("*.json*"):
        file.unlink()
    for other, whole in (KINDS["recording"], KINDS["supervision"]):
        if kind in ("recording", "supervision"):
            (root / other).write_text(json.dumps(whole) + "\n")
    (root / name).write_text(json.dumps(changed) + "\n")

    message = None
    try:
        for cut in open_split(CorpusConfig(name=str(root)), root, "test"):
            assert transcript(cut)
            assert read_cut(cut).ndim == 1
    except CorpusError as error:
        message = str(error)

    if message is not None:
        assert message.isprintable()
        assert "`" in message
        assert len(message) < 1_000
    assert {file.name for file in root.iterdir()} <= {
        "a.wav",
        name,
        *(other for other, _ in KINDS.values()),
    }
