"""The command by which a model leaves."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from core import bundle
from core.config.trial import CorpusConfig
from core.data.tokenizer import Tokenizer
from core.testing import SHAPE, small_model


@pytest.fixture
def model(tmp_path):
    """A bundle of seven tokens."""
    texts, config = ["ABCD", "BAD"], CorpusConfig(tokens="char", vocabulary=7)
    tokenizer = Tokenizer.train(texts, config, tmp_path)
    assert tokenizer.size == SHAPE.vocabulary
    bundle.save(tmp_path / "model", small_model(), tokenizer, {})
    return tmp_path / "model"


def test_a_bundle_leaves_and_the_command_says_what_is_there(run, model, tmp_path):
    code, out, _ = run("export", model, "--to", "bundle", "--out", tmp_path / "out", "--json")

    told = json.loads(out)

    assert code == 0
    assert bundle.is_whole(tmp_path / "out")
    assert sorted(told["files"]) == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert told["verified"] == ["Every file matches its checksum."]


TARGETS = ("bundle", "onnx", "sherpa", "transformers")
NEW = ("--out", "{tmp}/new")
SHAPED = "`frontend.subsampling_kind` of a model for transformers must be dw_striding"


def torn(file):
    """What makes a bundle's file end too early."""
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-5])


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{model}", "--out", "{tmp}"], "`--out` must be a new folder"),
        (["{model}", "--out", "{model}"], "`--out` must be a new folder"),
        (["{model}", "--out", "{model}/shape.json"], "`--out` must be a new folder"),
        (["{model}", "--out", "{model}/shape.json/new"], "shape.json"),
        (["{tmp}", *NEW], "must be a bundle"),
        (["{tmp}/missing", *NEW], "missing"),
        (["{model}/shape.json", *NEW], "must be a bundle"),
        (["{tmp}", "7", *NEW], "must hold a sweep"),
        (["{model}", "seven", *NEW], "seven"),
    ],
)
def test_what_cannot_be_read_or_written_is_one_line_and_code_2(
    run, model, tmp_path, words, said, to
):
    refused(run, model, tmp_path, [*words, "--to", to], said)


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("file", ["shape.json", "model.safetensors", "tokenizer.model"])
def test_a_torn_bundle_is_named_by_the_file_that_is_torn(run, model, tmp_path, file, to):
    torn(file)(model)

    refused(run, model, tmp_path, ["{model}", *NEW, "--to", to], file)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "bundle", "--int8"], "`--int8` must go with a graph"),
        (["--to", "transformers", "--int8"], "`--int8` must go with a graph"),
        (["--to", "bundle", "--verify-on", "{tmp}/a.wav"], "`--verify-on` must go with"),
        (["--to", "onnx", "--verify-on", "{tmp}/a.wav"], "`--verify-on` must go with"),
        (["--to", "sherpa", "--verify-on", "{tmp}/a.wav"], "a.wav` must be an audio file"),
        (["--to", "transformers", "--verify-on", "{tmp}/a.wav"], "a.wav` must be an audio file"),
        (["--to", "transformers"], SHAPED),
    ],
)
def test_flags_that_mean_nothing_together_are_one_line_and_code_2(
    run, model, tmp_path, words, said
):
    refused(run, model, tmp_path, ["{model}", *NEW, *words], said)


@pytest.mark.parametrize("words", [["--to", "tflite"], ["--to"], []])
def test_a_target_that_is_none_is_told_which_there_are(run, model, tmp_path, words):
    code, out, err = run("export", model, "--out", tmp_path / "new", *words)

    assert (code, out) == (2, "")
    assert "--to" in err
    assert not (tmp_path / "new").exists()


def test_tokens_that_sherpa_cannot_say_are_named_and_nothing_is_left(run, tmp_path):
    texts, config = ["A\tB AB"], CorpusConfig(tokens="char", vocabulary=7)
    tokenizer = Tokenizer.train(texts, config, tmp_path)
    shape = replace(SHAPE, vocabulary=tokenizer.size)
    bundle.save(tmp_path / "model", small_model(shape=shape), tokenizer, {})

    words = ["{model}", *NEW, "--to", "sherpa"]

    refused(run, tmp_path / "model", tmp_path, words, "symbol without white space, but token")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no place that even root cannot write to")
@pytest.mark.parametrize("to", TARGETS)
def test_a_place_that_cannot_be_written_to_is_named(run, model, tmp_path, to):
    refused(run, model, tmp_path, ["{model}", "--to", to, "--out", "/proc/new"], "/proc")


def refused(run, model, tmp_path, words, said):
    """One line, code 2, and all as it was."""
    before = sorted(tmp_path.rglob("*"))

    code, out, err = run("export", *(word.format(model=model, tmp=tmp_path) for word in words))

    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("to", "package", "extra"),
    [
        ("onnx", "onnxruntime", "export"),
        ("sherpa", "sherpa_onnx", "sherpa"),
        ("transformers", "transformers", "transformers"),
    ],
)
def test_what_is_not_installed_is_named_before_anything_is_written(
    run, model, tmp_path, monkeypatch, to, package, extra
):
    monkeypatch.setitem(sys.modules, package, None)  # as Python marks what is not there

    code, _, err = run("export", model, "--to", to, "--out", tmp_path / "out")

    assert code == 2
    assert f"`{package}`" in err
    assert f'pip install "conformer-sweep[{extra}]"' in err
    assert not (tmp_path / "out").exists()
