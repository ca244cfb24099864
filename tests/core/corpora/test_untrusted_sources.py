"""What a manifest names as its audio is never run and never fetched."""

import gzip
import json
import socket

import numpy as np
import pytest
import soundfile

from core.config import CorpusConfig
from core.corpora.audio import CorpusError, read_cut
from core.corpora.corpus import open_split


def recording(source, kind="file", **others):
    sources = [{"type": kind, "channels": [0], "source": str(source)}]
    known = {"id": "a", "sampling_rate": 16000, "num_samples": 8000, "duration": 0.5}
    return {**known, "sources": sources, **others}


def cut(audio, **others):
    spoken = {"id": "a", "recording_id": "a", "start": 0.0, "duration": 0.5, "text": "GO"}
    known = {"id": "a", "start": 0.0, "duration": 0.5, "channel": 0, "type": "MonoCut"}
    return {**known, "recording": audio, "supervisions": [spoken], **others}


def reverb(rir):
    return [{"name": "ReverbWithImpulseResponse", "kwargs": {"rir": rir}}]


def mixed(audio):
    tracks = [{"cut": cut(audio), "type": "MonoCut", "offset": 0.0}]
    return {"id": "m", "type": "MixedCut", "tracks": tracks}


FORMS = {
    "its recording": cut,
    "an impulse response": lambda bad: cut(recording("a.wav", transforms=reverb(bad))),
    "an impulse response's cut": lambda bad: cut(recording("a.wav", transforms=reverb(cut(bad)))),
    "a mixed track": mixed,
    "a mix's transform": lambda bad: mixed(recording("a.wav")) | {"transforms": reverb(bad)},
}
KINDS = {
    "command": ("command", "touch mark; cat a.wav"),
    "url": ("url", "http://127.0.0.1:{port}/a.wav"),
    "url to a pipe": ("url", "pipe:touch mark"),
    "file that is a pipe": ("file", "pipe:touch mark"),
    "file that is an address": ("file", "http://127.0.0.1:{port}/a.wav"),
}


def read_all(root):
    cuts = open_split(CorpusConfig(name=str(root)), root, "test")
    return [read_cut(one) for one in cuts]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_shar", [False, True])
def test_nothing_that_a_manifest_names_is_run_or_fetched(
    form, kind, is_shar, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    type_, source = KINDS[kind]
    soundfile.write(tmp_path / "a.wav", np.full(8000, 0.1), 16000)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        bad = recording(source.format(port=server.getsockname()[1]), type_)
        line = json.dumps(FORMS[form](bad)) + "\n"
        if is_shar:
            (tmp_path / "test").mkdir()
            with gzip.open(tmp_path / "test" / "cuts.000000.jsonl.gz", "wt") as file:
                file.write(line)
        else:
            (tmp_path / "test.jsonl").write_text(line)

        with pytest.raises(CorpusError, match=r"must name an audio file"):
            read_all(tmp_path)

        with pytest.raises(TimeoutError):
            server.accept()
    assert not (tmp_path / "mark").exists()


def test_a_files_name_is_no_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "a.wav;touch mark;.sph"  # lhotse hands NIST files to a program, in a shell
    soundfile.write(tmp_path / "a.wav", np.full(8000, 0.1), 16000)
    (tmp_path / "a.wav").rename(tmp_path / name)
    (tmp_path / "test.jsonl").write_text(json.dumps(cut(recording(name))) + "\n")

    [samples] = read_all(tmp_path)

    assert len(samples) == 8000
    assert not (tmp_path / "mark").exists()
