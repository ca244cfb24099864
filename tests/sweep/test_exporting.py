"""The command by which a model leaves."""

import json
import sys

import pytest

from core.config import CorpusConfig
from core.corpora.text import Tokenizer
from core.deploy import bundle
from core.testing import SHAPE, small_model
from sweep import cli


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command as the shell would; give its exit code and what it printed."""

    def ran(*words):
        monkeypatch.setattr(sys, "argv", ["conformer-sweep", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return ran


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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{model}", "--to", "bundle", "--out", "{tmp}"], "must be a new folder"),
        (["{model}", "--to", "bundle", "--int8", "--out", "{tmp}/new"], "`--int8` must go with"),
        (["{tmp}", "--to", "bundle", "--out", "{tmp}/new"], "must be a bundle"),
        (["{tmp}", "7", "--to", "bundle", "--out", "{tmp}/new"], "must hold a sweep"),
    ],
)
def test_what_is_wrong_is_one_line_and_code_2(run, model, tmp_path, words, said):
    before = sorted(tmp_path.rglob("*"))

    code, out, err = run("export", *(word.format(model=model, tmp=tmp_path) for word in words))

    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_not_installed_is_named_before_anything_is_written(
    run, model, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "sherpa_onnx", None)  # as Python marks what is not there

    code, _, err = run("export", model, "--to", "sherpa", "--out", tmp_path / "out")

    assert code == 2
    assert "`sherpa_onnx`" in err
    assert 'pip install "conformer-sweep[sherpa]"' in err
    assert not (tmp_path / "out").exists()
