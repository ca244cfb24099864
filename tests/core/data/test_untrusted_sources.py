"""What a manifest names as its audio is never run and never fetched."""

import gzip
import json
import os
import socket
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile

from core.config.trial import CorpusConfig
from core.data.audio import read_cut
from core.data.audio_decoding import CorpusError
from core.data.corpus import open_split


def recording(source, kind="file", **others):
    sources = [{"type": kind, "channels": [0], "source": str(source)}]
    record = {"id": "a", "sampling_rate": 16000, "num_samples": 8000, "duration": 0.5}
    return {**record, "sources": sources, **others}


def make_cut(audio, **others):
    spoken = {"id": "a", "recording_id": "a", "start": 0.0, "duration": 0.5, "text": "GO"}
    record = {"id": "a", "start": 0.0, "duration": 0.5, "channel": 0, "type": "MonoCut"}
    return {**record, "recording": audio, "supervisions": [spoken], **others}


def reverb(rir):
    return [{"name": "ReverbWithImpulseResponse", "kwargs": {"rir": rir}}]


def mix(audio):
    tracks = [{"cut": make_cut(audio), "type": "MonoCut", "offset": 0.0}]
    return {"id": "m", "type": "MixedCut", "tracks": tracks}


FORMS = {
    "its recording": make_cut,
    "an impulse response": lambda bad: make_cut(recording("a.wav", transforms=reverb(bad))),
    "an impulse response's cut": lambda bad: make_cut(
        recording("a.wav", transforms=reverb(make_cut(bad)))
    ),
    "a mixed track": mix,
    "a mix's transform": lambda bad: mix(recording("a.wav")) | {"transforms": reverb(bad)},
}
KINDS = {
    "command": ("command", "touch mark; cat a.wav"),
    "url": ("url", "http://127.0.0.1:{port}/a.wav"),
    "url to a pipe": ("url", "pipe:touch mark"),
    "file that is a pipe": ("file", "pipe:touch mark"),
    "file that is an address": ("file", "http://127.0.0.1:{port}/a.wav"),
}


def read_all(root, *allow):
    cuts = open_split(CorpusConfig(name=str(root), allow=list(allow)), root, "test")
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
    (tmp_path / "test.jsonl").write_text(json.dumps(make_cut(recording(name))) + "\n")

    [samples] = read_all(tmp_path)

    assert len(samples) == 8000
    assert not (tmp_path / "mark").exists()


def test_a_nested_type_that_is_no_cut_is_never_made(tmp_path, monkeypatch):
    """What lhotse would make of a custom field is not even looked at."""
    monkeypatch.chdir(tmp_path)
    soundfile.write(tmp_path / "a.wav", np.full(8000, 0.1), 16000)
    bad = recording("touch mark", "command")
    custom = {"target": bad, "image": {"width": 1}, "array": {"shape": [1], "array": bad}}
    features = {"storage_type": "kaldiio", "storage_path": "touch mark |", "num_features": 1}
    line = make_cut(recording("a.wav"), custom=custom, features=features)
    (tmp_path / "test.jsonl").write_text(json.dumps(line) + "\n")

    [samples] = read_all(tmp_path)

    assert len(samples) == 8000
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["pipe:touch mark", "http://127.0.0.1:9/a.wav", "a|b;touch mark"])
def test_nemos_manifests_name_files_alone(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test.json").write_text(json.dumps({"audio_filepath": name, "text": "GO"}) + "\n")

    with pytest.raises(CorpusError, match=r"must name an audio file|must be an audio file"):
        read_all(tmp_path)

    assert not (tmp_path / "mark").exists()


def test_a_pipe_or_a_device_in_the_place_of_audio_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo.wav")
    for source in (tmp_path / "fifo.wav", "/dev/zero", "/dev/stdin", tmp_path):
        (tmp_path / "test.jsonl").write_text(json.dumps(make_cut(recording(source))) + "\n")
        with pytest.raises(CorpusError, match=r"must be an audio file"):
            read_all(tmp_path)


def test_a_playlist_in_the_place_of_audio_is_not_played(tmp_path):
    """A decoder of films would open the addresses in it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        for name in ("a.wav", "a.m3u8", "a.m4a"):
            (tmp_path / name).write_text(f"#EXTM3U\n#EXTINF:10.0,\n{address}\n")
            line = json.dumps(make_cut(recording(tmp_path / name)))
            (tmp_path / "test.jsonl").write_text(line + "\n")
            with pytest.raises(CorpusError, match=r"must be readable audio"):
                read_all(tmp_path)
        with pytest.raises(TimeoutError):
            server.accept()


def test_programs_are_run_where_the_user_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    soundfile.write(tmp_path / "a.wav", np.full(8000, 0.25), 16000)
    line = json.dumps(make_cut(recording("touch mark; cat a.wav", "command")))
    (tmp_path / "test.jsonl").write_text(line + "\n")

    [samples] = read_all(tmp_path, "commands")

    assert samples.tolist() == [0.25] * 8000
    assert (tmp_path / "mark").exists()
    with pytest.raises(CorpusError, match=r"is a `command` instead, which runs a program"):
        read_all(tmp_path, "urls")


def test_a_program_that_fails_is_said(tmp_path):
    line = json.dumps(make_cut(recording("exit 3", "command")))
    (tmp_path / "test.jsonl").write_text(line + "\n")

    with pytest.raises(CorpusError, match=r"the program 'exit 3' ended with code 3"):
        read_all(tmp_path, "commands")


@pytest.fixture
def web(tmp_path):
    """A folder that is served; gives its address."""
    (tmp_path / "web").mkdir()
    handler = partial(QuietHandler, directory=tmp_path / "web")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_addresses_are_opened_where_the_user_says_so(web, tmp_path):
    soundfile.write(tmp_path / "web" / "a.wav", np.full(8000, 0.25), 16000)
    for name, rule in [("a.wav", None), ("gone.wav", r"cannot be read: HTTP Error 404")]:
        line = json.dumps(make_cut(recording(f"{web}/{name}", "url")))
        (tmp_path / "test.jsonl").write_text(line + "\n")
        if rule is None:
            assert read_all(tmp_path, "urls")[0].tolist() == [0.25] * 8000
        else:
            with pytest.raises(CorpusError, match=rule):
                read_all(tmp_path, "urls")


@pytest.mark.parametrize("address", ["pipe:touch mark", "file:///etc/passwd", "s3://b/a", "a.wav"])
def test_only_web_addresses_are_opened(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test.jsonl").write_text(json.dumps(make_cut(recording(address, "url"))) + "\n")

    with pytest.raises(CorpusError, match=r"must begin with http:// or https://, but is"):
        read_all(tmp_path, "urls", "commands")

    assert not (tmp_path / "mark").exists()
