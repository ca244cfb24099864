"""By what code, with what packages and on what speech a sweep was run."""

import os
import subprocess
import sys
from importlib.metadata import version

import pytest
from made_outcomes import make_records

from core.data.prepare import prepare_speech
from core.data.tokenizer import Tokenizer
from core.digests import speech_lineage
from sweep.config.sweep import create, load
from sweep.run import nodes
from sweep.run.ray_cluster import OtherProgramError
from sweep.run.worker import error_kind
from sweep.tracking import provenance


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

    lineage = speech_lineage(demo_folder)

    assert lineage.corpus == "demo"
    assert lineage.corpus_digest == demo_corpus.digest
    assert lineage.tokenizer_digest == Tokenizer.load(demo_folder).digest
    counts = {split.split: split.num_utterances for split in lineage.splits}
    assert counts["dev"] == len(list(demo_corpus.dev))
    assert set(counts) == {"train", "dev", "test"}
    assert all(split.seconds > 0 and len(split.digest) == 16 for split in lineage.splits)


def test_datasets_stand_on_the_sweep_and_on_each_of_its_trials(opened, demo_config, demo_folder):
    list(prepare_speech(demo_config, demo_folder))
    datasets = provenance.datasets(speech_lineage(demo_folder))
    tracker = opened()

    tracker.log_datasets(datasets, {"corpus.digest": "abc"})
    for record in make_records(2):
        tracker.finish_trial(record)
    again = opened()
    again.log_datasets(datasets, {"corpus.digest": "abc"})

    for run in again.runs.search(""):
        inputs = run.inputs.dataset_inputs
        assert sorted(item.tags[0].value for item in inputs) == ["dev", "test", "train"]
        assert {item.dataset.name for item in inputs} == {"demo train", "demo dev", "demo test"}
        assert {item.dataset.digest for item in inputs} == {item.digest for item in datasets}
    assert again.client.get_run(again.parent).data.tags["corpus.digest"] == "abc"


def test_every_run_says_by_what_code_it_was_made(opened):
    tracker = opened()
    tracker.open_sweep("", {}, {"code.version": "1 abc", "mlflow.source.git.commit": "def"})
    tracker.log_text("provenance/code.diff", lambda: "+ a")
    tracker.log_text("provenance/nothing.txt", str)
    tracker.finish_trial(make_records(1)[0])

    for run in tracker.runs.search(""):
        assert run.data.tags["mlflow.source.git.commit"] == "def"
    artifacts = tracker.client.list_artifacts(tracker.parent, "provenance")
    assert [file.path for file in artifacts] == ["provenance/code.diff"]


def test_sources_that_changed_since_are_named(tmp_path):
    provenance.copy_program(tmp_path)
    before = provenance.source_digests(tmp_path)
    assert before == provenance.source_digests()
    assert provenance.changed_sources(before, tmp_path) == []

    (tmp_path / "core" / "trial.py").write_text("edited\n")
    (tmp_path / "sweep" / "added.py").write_text("added\n")
    (tmp_path / "core" / "methods" / "l0.py").unlink()
    (tmp_path / "core" / "notes.txt").write_text("no source\n")

    assert provenance.changed_sources(before, tmp_path) == [
        "core/methods/l0.py",
        "core/trial.py",
        "sweep/added.py",
    ]


def test_a_changed_program_is_told_with_its_files_and_what_to_do():
    few, many = (
        nodes.program_changed_error([f"core/{i}.py" for i in range(count)]) for count in (2, 9)
    )

    assert "The program was changed while this sweep ran: core/0.py, core/1.py." in few
    assert "Run `conformer-sweep resume` on its directory" in few
    assert "core/4.py and 4 more." in many


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_with_another_program_than_the_drivers_is_told_apart():
    nodes.check_this_machine(None, provenance.code_version())

    with pytest.raises(OtherProgramError, match=r"the driver's, 0\.1\.0 other, but"):
        nodes.check_this_machine(None, "0.1.0 other")
    assert error_kind(OtherProgramError("")) == "program"


@pytest.mark.ray
@pytest.mark.long
def test_a_source_file_saved_while_a_sweep_runs_changes_no_trial(tiny_space, tmp_path):
    """Trials' workers start after the teacher's: if theirs were the edited file, all would fail."""
    provenance.copy_program(tmp_path / "program")
    create(tmp_path / "sweep", load(str(tiny_space)), "")
    command = [sys.executable, "-P", "-m", "sweep", "resume", str(tmp_path / "sweep")]
    copy = os.environ | {"PYTHONPATH": str(tmp_path / "program")}
    with subprocess.Popen(command, env=copy, stderr=subprocess.PIPE, text=True) as driver:  # noqa: S603
        assert driver.stderr is not None
        next(line for line in driver.stderr if "preparing speech and teacher" in line)
        edited = tmp_path / "program" / "core" / "trial.py"
        edited.write_text('raise RuntimeError("edited")\n')
        rest = driver.stderr.read()

    assert driver.returncode == 0, rest
    assert provenance.changed_sources(provenance.own_sources(), tmp_path / "program")
