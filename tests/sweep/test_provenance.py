"""By what code, with what packages and on what speech a sweep was run."""

import subprocess
from importlib.metadata import version

import pytest

from core.corpora.prepared import prepare_speech
from core.corpora.text import Tokenizer
from core.lineage import speech_lineage
from sweep import provenance
from sweep.testing import made_records


@pytest.fixture
def checkout(tmp_path):
    """A git checkout with one commit."""
    root = tmp_path / "checkout"
    (root / "core").mkdir(parents=True)
    (root / "core" / "a.py").write_text("a = 1\n")
    (root / "notes.txt").write_text("mine\n")
    for words in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "Begin"],
    ):
        subprocess.run(["git", "-C", root, *words], check=True)  # noqa: S603, S607
    return root


def test_a_clean_checkout_is_its_commit(checkout):
    code = provenance.code(checkout)

    assert len(code.commit) == 40
    assert code.diff == ""
    assert code.tags["mlflow.source.git.commit"] == code.commit
    assert code.tags["code.dirty"] == "false"


def test_a_changed_checkout_is_its_commit_and_a_diff_that_applies(checkout, tmp_path):
    (checkout / "core" / "a.py").write_text("a = 2\n")
    (checkout / "core" / "new.py").write_text("b = 3\n")
    (checkout / "notes.txt").write_text("no code\n")

    code = provenance.code(checkout)

    assert code.tags["code.dirty"] == "true"
    assert "no code" not in code.diff
    (tmp_path / "code.diff").write_text(code.diff)
    again = tmp_path / "again"
    for words in (
        ["git", "clone", "-q", checkout, again],
        ["git", "-C", again, "apply", tmp_path / "code.diff"],
    ):
        subprocess.run(words, check=True)  # noqa: S603
    assert (again / "core" / "a.py").read_text() == "a = 2\n"
    assert (again / "core" / "new.py").read_text() == "b = 3\n"


def test_outside_a_checkout_code_is_its_version(tmp_path):
    assert provenance.code(tmp_path).tags == {"code.version": provenance.code_version()}


def test_packages_are_listed_as_pip_reads_them():
    lines = provenance.packages().splitlines()

    assert f"mlflow=={version('mlflow')}" in lines
    assert lines == sorted(lines, key=str.lower)


def test_prepared_speech_is_known_by_its_digests(demo_corpus, demo_config, demo_folder):
    assert speech_lineage(demo_folder / "nowhere") is None
    list(prepare_speech(demo_config, demo_folder))

    found = speech_lineage(demo_folder)

    assert found.corpus == "demo"
    assert found.corpus_digest == demo_corpus.digest
    assert found.tokenizer_digest == Tokenizer.load(demo_folder).digest
    counts = {split.split: split.num_utterances for split in found.splits}
    assert counts["dev"] == len(list(demo_corpus.dev))
    assert set(counts) == {"train", "dev", "test"}
    assert all(split.seconds > 0 and len(split.digest) == 16 for split in found.splits)


def test_datasets_stand_on_the_sweep_and_on_each_of_its_trials(opened, demo_config, demo_folder):
    list(prepare_speech(demo_config, demo_folder))
    datasets = provenance.datasets(speech_lineage(demo_folder))
    tracker = opened()

    tracker.log_datasets(datasets, {"corpus.digest": "abc"})
    for record in made_records(2):
        tracker.finish_trial(record)
    again = opened()
    again.log_datasets(datasets, {"corpus.digest": "abc"})

    for run in again.runs.search(""):
        inputs = run.inputs.dataset_inputs
        assert sorted(each.tags[0].value for each in inputs) == ["dev", "test", "train"]
        assert {each.dataset.name for each in inputs} == {"demo train", "demo dev", "demo test"}
        assert {each.dataset.digest for each in inputs} == {each.digest for each in datasets}
    assert again.client.get_run(again.parent).data.tags["corpus.digest"] == "abc"


def test_every_run_says_by_what_code_it_was_made(opened):
    tracker = opened()
    tracker.open_sweep("", {}, {"code.version": "1 abc", "mlflow.source.git.commit": "def"})
    tracker.log_text("provenance/code.diff", lambda: "+ a")
    tracker.log_text("provenance/nothing.txt", str)
    tracker.finish_trial(made_records(1)[0])

    for run in tracker.runs.search(""):
        assert run.data.tags["mlflow.source.git.commit"] == "def"
    found = tracker.client.list_artifacts(tracker.parent, "provenance")
    assert [file.path for file in found] == ["provenance/code.diff"]
