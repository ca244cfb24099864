"""`evaluate` on manifests: utterances and words are counted, or one line says what is wrong."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from core import bundle
from core.config.trial import CorpusConfig
from core.data.tokenizer import Tokenizer
from core.testing import SHAPE, small_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bundle of an untrained model, and audio beside manifests."""
    folder = tmp_path_factory.mktemp("input")
    tokens = CorpusConfig(tokens="word", vocabulary=20)
    tokenizer = Tokenizer.train(["ONE TWO", "TWO THREE"], tokens, folder / "tokens")
    shape = replace(SHAPE, vocabulary=tokenizer.size)
    bundle.save(folder / "model", small_model(shape=shape), tokenizer, {"wer": 0.5})
    noise = 0.1 * np.random.default_rng(0).standard_normal((32_000, 2))
    soundfile.write(folder / "a.wav", noise[:, 0], 16_000)
    soundfile.write(folder / "stereo.wav", noise, 16_000)
    return folder


def lines(file, *records):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def recording(source, kind="file", channels=(0,)):
    sources = [{"type": kind, "channels": list(channels), "source": str(source)}]
    known = {"id": "r", "sampling_rate": 16_000, "num_samples": 32_000, "duration": 2.0}
    return {**known, "sources": sources}


def said(name, text, *, start=0.0, duration=2.0, channel=0):
    known = {"id": name, "recording_id": "r", "start": start, "duration": duration}
    return {**known, "text": text, "channel": channel}


def test_one_nemo_manifest_is_a_corpus(folder, run, tmp_path):
    manifest = lines(
        tmp_path / "dev_manifest.json",
        {"audio_filepath": str(folder / "a.wav"), "duration": 1.0, "text": "ONE TWO"},
        {"audio_filepath": str(folder / "a.wav"), "offset": 1, "duration": 1, "text": "THREE"},
    )

    code, out, err = run(
        "evaluate", folder / "model", manifest, "--json", "--details", tmp_path / "d.json"
    )

    assert (code, err) == (0, "")
    assert json.loads(out)["utterances"] == 2
    assert json.loads(out)["words"] == 3
    details = json.loads((tmp_path / "d.json").read_text())
    assert [row["id"].partition("#")[2] for row in details] == ["t=0,1", "t=1,2"]


def test_both_channels_of_a_call_are_utterances_and_what_is_clipped_is_said(
    folder, run, tmp_path, caplog
):
    call = recording(folder / "stereo.wav", channels=(0, 1))
    lines(tmp_path / "c" / "recordings_test.jsonl", call)
    lines(
        tmp_path / "c" / "supervisions_test.jsonl",
        said("a", "ONE", channel=0),
        said("b", "TWO THREE", start=1.0, duration=1.5, channel=1),
    )

    code, out, _ = run("evaluate", folder / "model", tmp_path / "c", "--json")

    assert code == 0
    assert (json.loads(out)["utterances"], json.loads(out)["words"]) == (2, 3)
    assert "such as `b`; they are clipped to it" in caplog.text


BAD = {
    "a program": lambda _: ({"recording": recording("touch mark", "command")}, "`command`"),
    "an address": lambda _: ({"recording": recording("http://x/a", "url")}, "`url`"),
    "a number for words": lambda audio: (
        {"recording": recording(audio), "supervisions": [said("a", 5)]},
        "put it in quotes",
    ),
    "no recording": lambda audio: ({"features": {"type": f"{audio}"}}, "features alone"),
    "no audio": lambda audio: ({"recording": recording(f"{audio}.gone")}, "missing"),
    "no duration": lambda audio: (
        {"recording": recording(audio), "supervisions": [said("a", "ONE", duration=0)]},
        "`supervisions.0.duration` must be greater than 0",
    ),
    "a channel too many": lambda audio: (
        {"recording": recording(audio), "channel": 1},
        "must name a channel",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_heard_ends_in_one_line_and_exit_code_2(
    case, folder, run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    values, rule = BAD[case](folder / "a.wav")
    known = {"id": "c", "type": "MonoCut", "start": 0.0, "duration": 2.0, "channel": 0}
    cut = {**known, "supervisions": [said("a", "ONE")], **values}
    manifest = lines(tmp_path / "test.jsonl", cut)

    for corpus in (manifest, tmp_path):
        code, out, err = run("evaluate", folder / "model", corpus)

        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert rule in err
    assert not (tmp_path / "mark").exists()
