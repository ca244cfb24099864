"""The commands in which a model listens: to any files, and to a corpus beside another model."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from core import bundle
from core.config.trial import CorpusConfig
from core.data.tokenizer import Tokenizer
from core.inference.recognizer import transcribe
from core.pruning.extraction import select_blocks
from core.testing import deeper, small_model
from tests.support.arpa import write_arpa


@pytest.fixture
def model(tmp_path):
    """A bundle of three blocks, the last of which is missed most."""
    config = CorpusConfig(tokens="char", vocabulary=12)
    tokenizer = Tokenizer.train(["ONE TWO", "TEN"], config, tmp_path)
    whole = small_model(shape=replace(deeper(3), vocabulary=tokenizer.size))
    bundle.save(tmp_path / "model", whole, tokenizer, {"depth_order": [2, 0, 1]})
    noise = 0.1 * np.random.default_rng(0).standard_normal(32_000)
    soundfile.write(tmp_path / "x.wav", noise, 16_000)
    return tmp_path / "model"


def test_speech_is_heard_at_a_depth_as_by_the_model_of_those_blocks(run, model):
    opened, file = bundle.load(model), model.parent / "x.wav"
    small = replace(opened, model=select_blocks(opened.model, [0, 2]))
    ((_, expected),) = transcribe(small, [file])
    ((_, whole),) = transcribe(opened, [file])

    code, out, _ = run("transcribe", model, file, "--depth", 2, "--json")

    assert code == 0
    assert json.loads(out)[0]["text"] == expected != whole


@pytest.mark.parametrize(
    "words", [("transcribe", "{model}", "x.wav"), ("evaluate", "{model}", "demo")]
)
def test_a_depth_that_a_model_does_not_have_is_one_line_and_code_2(run, model, words):
    code, out, err = run(*[word.format(model=model) for word in words], "--depth", 4)

    assert (code, out) == (2, "")
    assert err == "error: `--depth` must be from 1 to 3, the model's blocks, but is 4 instead\n"


def test_a_file_that_cannot_be_heard_costs_nothing_of_the_others(run, model):
    folder = model.parent / "speech"
    (folder / "inner").mkdir(parents=True)
    (folder / "b.wav").write_bytes(b"no audio")
    (folder / "notes.txt").write_text("not looked at")
    for name in ("a.wav", "inner/c.WAV"):
        (folder / name).write_bytes((model.parent / "x.wav").read_bytes())
    ((_, expected),) = transcribe(bundle.load(model), [folder / "a.wav"])

    code, out, err = run("transcribe", model, folder, "--json")

    assert code == 2
    assert json.loads(out) == [
        {"file": str(folder / name), "text": expected} for name in ("a.wav", "inner/c.WAV")
    ]
    first, last = err.splitlines()
    assert "b.wav` must be readable audio" in first
    assert last == f"error: 1 of 3 files were not transcribed: `{folder / 'b.wav'}`"


def test_hidden_files_of_a_folder_are_not_transcribed(run, model):
    folder = model.parent / "speech"
    (folder / ".trash").mkdir(parents=True)
    (folder / "a.wav").write_bytes((model.parent / "x.wav").read_bytes())
    for name in ("._a.wav", ".trash/b.wav"):
        (folder / name).write_bytes(b"no audio")

    code, out, err = run("transcribe", model, folder, "--json")

    assert (code, err) == (0, "")
    assert [row["file"] for row in json.loads(out)] == [str(folder / "a.wav")]


def without_length(flac):
    """A FLAC as a pipe writes it: with an unknown number of samples."""
    content = bytearray(flac.read_bytes())
    field = int.from_bytes(content[18:26], "big")
    content[18:26] = (field >> 36 << 36).to_bytes(8, "big")
    flac.write_bytes(content)


@pytest.mark.parametrize("window", [(), ("--window", 1)])
def test_a_file_of_unknown_length_has_the_text_of_the_same_file_that_knows_it(run, model, window):
    samples, _ = soundfile.read(model.parent / "x.wav")
    files = [model.parent / name for name in ("right.flac", "unknown.flac")]
    for file in files:
        soundfile.write(file, samples, 16_000)
    without_length(files[1])

    code, out, _ = run("transcribe", model, *files, *window, "--json")

    assert code == 0
    right, unknown = (row["text"] for row in json.loads(out))
    assert right == unknown != ""


@pytest.mark.parametrize("window", [(), ("--window", 1)])
def test_a_sample_that_is_no_number_is_named_and_heard_as_zero(run, model, window, caplog):
    samples, _ = soundfile.read(model.parent / "x.wav", dtype="float32")
    for name, value in (("right.wav", 0), ("spoilt.wav", np.nan)):
        samples[24_000] = value
        soundfile.write(model.parent / name, samples, 16_000, "FLOAT")
    files = [model.parent / "right.wav", model.parent / "spoilt.wav"]

    code, out, _ = run("transcribe", model, *files, *window, "--json")

    assert code == 0
    right, spoilt = (row["text"] for row in json.loads(out))
    assert right == spoilt != ""
    said = "has a sample that is not a finite number, at 1.500 s; it is set to 0."
    assert [message for message in caplog.messages if "finite" in message] == [
        f"`{files[1]}` {said}"
    ]


@pytest.mark.parametrize("window", [(), ("--window", 1)])
def test_a_file_with_too_much_that_is_no_number_is_refused_by_name(run, model, window):
    file = model.parent / "none.wav"
    soundfile.write(file, np.full(32_000, np.nan), 16_000, "FLOAT")

    code, out, err = run("transcribe", model, file, *window)

    assert (code, out) == (2, "")
    assert f"`{file}` must be audio of finite numbers" in err


def test_each_file_of_a_folder_gets_its_transcript(run, model):
    folder, to = model.parent / "speech", model.parent / "out"
    (folder / "inner").mkdir(parents=True)
    for name in ("a.wav", "inner/c.wav"):
        (folder / name).write_bytes((model.parent / "x.wav").read_bytes())

    code, out, err = run("transcribe", model, folder, "--format", "vtt", "--out", to)

    assert (code, out, err) == (0, "", "")
    files = sorted(str(file.relative_to(to)) for file in to.rglob("*") if file.is_file())
    assert files == ["a.vtt", "inner/c.vtt"]
    assert (to / "a.vtt").read_text().startswith("WEBVTT\n\n00:00:0")


def test_words_have_their_times_within_the_file(run, model):
    code, out, _ = run(
        "transcribe", model, model.parent / "x.wav", "--format", "json", "--timestamps"
    )
    (found,) = json.loads(out)

    assert code == 0
    assert found["words"]
    assert " ".join(word["text"] for word in found["words"]) == found["text"]
    assert all(0 <= word["start"] < word["end"] <= 2 for word in found["words"])
    assert all(0 < word["confidence"] <= 1 for word in found["words"])


def test_long_speech_is_heard_by_windows_and_timed(run, model):
    file = model.parent / "x.wav"

    code, out, err = run("transcribe", model, file, "--window", 1, "--overlap", 0.4)

    assert code == 0
    assert out.startswith(f"{file}: ")
    assert err.startswith("2.0 s of speech in ")
    assert "real-time factor" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--overlap", 16), "`--overlap` must be from 0 to 6"),
        (("--timestamps",), "`--timestamps` must go with `--format json`"),
        (("--lm-weight", 1), "`--lm-weight` must go with `--lm`"),
        (("--lm", "none.arpa"), "`none.arpa` must be a language model in ARPA format"),
    ],
)
def test_options_that_cannot_be_are_one_line_and_code_2(run, model, words, message):
    code, out, err = run("transcribe", model, model.parent / "x.wav", *words)

    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert len(err.splitlines()) == 1


def test_a_folder_without_audio_is_named(run, model):
    code, out, err = run("transcribe", model, model)

    assert (code, out) == (2, "")
    assert f"`{model}` must hold audio (.aif" in err


@pytest.fixture
def corpus(model):
    """Six test utterances of noise in the LibriSpeech layout."""
    folder = model.parent / "corpus" / "test-clean" / "1" / "1"
    folder.mkdir(parents=True)
    said = ["ONE TWO", "TEN", "TWO TEN", "ONE", "TEN TEN ONE", "TWO"]
    for i in range(len(said)):
        noise = 0.1 * np.random.default_rng(i).standard_normal(16_000)
        soundfile.write(folder / f"1-1-000{i}.flac", noise, 16_000)
    lines = [f"1-1-000{i} {text}" for i, text in enumerate(said)]
    (folder / "1-1.trans.txt").write_text("\n".join(lines) + "\n")
    return folder.parents[2]


def test_a_model_is_not_significantly_different_from_itself(run, model, corpus):
    details = model.parent / "details.csv"

    code, out, _ = run(
        *("evaluate", model, corpus, "--against", model, "--details", details, "--json")
    )
    found = json.loads(out)

    assert code == 0
    assert found["difference"]["difference"] == 0
    assert found["difference"]["is_significant"] is False
    assert found["difference"]["p_value"] == 1
    assert found["against"]["wer"] == found["wer"]
    errors = found["substitutions"] + found["deletions"] + found["insertions"]
    assert errors == round(found["wer"] * found["words"])
    assert len(found["confusions"]) <= 5
    with details.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [f"1-1-000{i}" for i in range(6)]
    assert sum(int(row["errors"]) for row in rows) == errors
    assert [row["hypothesis"] for row in rows] == [row["against_hypothesis"] for row in rows]


def test_an_evaluation_reads_files_of_unknown_length_and_names_what_is_no_number(
    run, model, corpus, caplog
):
    _, before, _ = run("evaluate", model, corpus, "--json")
    flac = next(corpus.rglob("1-1-0002.flac"))
    without_length(flac)
    spoilt = flac.with_name("1-1-0003.wav")
    flac.with_name("1-1-0003.flac").rename(spoilt)
    samples, _ = soundfile.read(spoilt)
    samples[[4_000, 8_000]] = np.inf
    soundfile.write(spoilt, samples, 16_000, "DOUBLE")

    code, after, _ = run("evaluate", model, corpus, "--json")

    assert code == 0
    assert json.loads(after)["words"] == json.loads(before)["words"]
    assert f"`{spoilt}` has 2 samples that are not finite numbers, the first at 0.250 s" in "".join(
        caplog.messages
    )


def test_an_evaluation_says_which_errors_and_how_a_second_model_stands(run, model, corpus):
    details = model.parent / "details.json"
    words = ("--against", model, "--confusions", 2, "--details", details)

    code, out, _ = run("evaluate", model, corpus, *words)

    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("WER ")
    assert lines[1].startswith("errors: ")
    assert sum(line.startswith("  ") for line in lines) <= 4
    assert lines[-1] == "difference +0.00 % (+0.00 to +0.00), not significant at 95 % (p = 1)"
    assert len(json.loads(details.read_text())) == 6


def test_details_of_an_unknown_kind_are_refused_before_anything_is_heard(run, model):
    code, out, err = run("evaluate", model, "nowhere", "--details", "x.xlsx")

    assert (code, out) == (2, "")
    assert err == "error: `--details` must end in .json or .csv, but is `x.xlsx` instead\n"


def test_a_language_model_is_listened_to_by_both_commands(run, model, corpus):
    pytest.importorskip("flashlight.lib.text.decoder", reason="the extra `lm` is not installed")
    lm = model.parent / "x.arpa"
    write_arpa(["ONE TWO", "TEN"], lm, order=2)
    options = ("--beam", 4, "--lm", lm, "--lm-weight", 3, "--word-score", -1)

    heard = run("transcribe", model, model.parent / "x.wav", *options)
    judged = run("evaluate", model, corpus, *options)

    assert (heard[0], judged[0]) == (0, 0)
    assert (heard[2], judged[2]) == ("", "")
    assert judged[1].startswith("WER ")
