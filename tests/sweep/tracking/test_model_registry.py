"""A trial's model in a real registry: once, under an alias, and loadable again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import soundfile
from made_outcomes import make_outcome

from core import bundle
from core.config.trial import CorpusConfig
from core.data.tokenizer import Tokenizer
from core.digests import bundle_digest
from core.testing import SHAPE, small_model
from sweep.config.distributions import Range
from sweep.config.sweep import create, load
from sweep.ledger.ledger import Ledger
from sweep.tracking.mlflow_client import open_client
from sweep.tracking.mlflow_server import database_uri
from sweep.tracking.tracker import Tracker

LEAVES = {"pruning.target_sparsity": Range(low=0.2, high=0.8)}


def save_bundle(folder, seed, tokens):
    tokenizer = Tokenizer.train(
        ["one two three", "two one"], CorpusConfig(tokens="word", vocabulary=20), tokens
    )
    model = small_model(seed, shape=replace(SHAPE, vocabulary=tokenizer.size))
    bundle.save(folder, model, tokenizer, {"wer": 0.1})


@pytest.fixture
def sweep(folder, tiny_space, tmp_path):
    """A sweep with a finished trial of two outcomes, another finished one and a waiting one."""
    create(folder, load(str(tiny_space)), tiny_space.read_text())
    save_bundle(folder / "teacher" / "model", 0, tmp_path)
    ledger = Ledger.create(folder)
    tracker = Tracker(folder, "tiny")
    tracker.open_sweep("", {})
    outcomes = [
        [make_outcome(0.05, 2.0), make_outcome(0.08, 1.0, model="model.1")],
        [make_outcome(0.06, 1.5)],
    ]
    for number, values in enumerate(outcomes):
        ledger.add({"pruning.target_sparsity": 0.5}, LEAVES)
        for outcome in values:
            save_bundle(folder / "trials" / f"{number:04}" / outcome.model, number + 1, tmp_path)
        ledger.track(number, tracker.open_trial(ledger.start(number)))
        tracker.finish_trial(ledger.finish(number, values))
    ledger.add({"pruning.target_sparsity": 0.6}, LEAVES)
    ledger.close()
    return folder


def promoted(run, sweep, trial, alias="best"):
    code, out, err = run("promote", sweep, trial, "--name", "digits", "--alias", alias, "--json")
    assert code == 0, err
    return json.loads(out)


def test_a_promoted_model_is_found_by_its_alias_and_hears(run, sweep, monkeypatch, tmp_path):
    done = promoted(run, sweep, 0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database_uri(sweep))
    folder = mlflow.artifacts.download_artifacts(done["uri"], dst_path=str(tmp_path / "got"))
    noise = 0.1 * np.random.default_rng(0).standard_normal(16_000)
    soundfile.write(tmp_path / "x.wav", noise, 16_000)

    code, out, _ = run("transcribe", folder, tmp_path / "x.wav", "--json")

    assert code == 0
    assert Path(json.loads(out)[0]["file"]).name == "x.wav"
    assert bundle_digest(Path(folder)) == bundle_digest(sweep / "trials" / "0000" / "model")


def test_the_same_trial_twice_is_one_version_and_moves_the_alias(run, sweep):
    first, other = promoted(run, sweep, 0), promoted(run, sweep, 1)
    again = promoted(run, sweep, 0)

    assert [(done["version"], done["is_new"]) for done in (first, other, again)] == [
        ("1", True),
        ("2", True),
        ("1", False),
    ]
    client = open_client(database_uri(sweep))
    assert client.get_model_version_by_alias("digits", "best").tags["sweep.trial"] == "0"
    promoted(run, sweep, 0, alias="small")
    assert len(client.search_model_versions("name = 'digits'")) == 2
    assert set(client.get_registered_model("digits").aliases) == {"best", "small"}


def test_a_trial_that_was_tuned_further_leaves_the_files_of_its_first_version(
    run, sweep, monkeypatch, tmp_path
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database_uri(sweep))
    model = sweep / "trials" / "0000" / "model"
    first, digest = promoted(run, sweep, 0, alias="first"), bundle_digest(model)
    shutil.rmtree(model)
    save_bundle(model, 9, tmp_path)

    second = promoted(run, sweep, 0, alias="second")

    found = [Path(mlflow.artifacts.download_artifacts(each["uri"])) for each in (first, second)]
    assert [bundle_digest(folder) for folder in found] == [digest, bundle_digest(model)]
    assert digest != bundle_digest(model)


def test_a_version_says_where_it_comes_from(run, sweep):
    promoted(run, sweep, "0.1")

    version = open_client(database_uri(sweep)).get_model_version("digits", "1")
    teacher = bundle_digest(sweep / "teacher" / "model")
    assert version.tags["sweep.id"] == (sweep / "sweep.id").read_text()
    assert (version.tags["sweep.trial"], version.tags["sweep.outcome"]) == ("0", "1")
    assert (version.tags["wer"], version.tags["gflops"]) == ("0.08", "1")
    assert version.tags["teacher.digest"] == teacher
    assert version.run_id == Ledger.open(sweep).record(0).mlflow_run_id
    assert "8.00 % WER" in version.description


def test_a_promoted_model_moves_with_its_sweep(run, sweep, monkeypatch, tmp_path):
    uri = promoted(run, sweep, 0)["uri"]
    moved = sweep.rename(tmp_path / "moved")

    assert promoted(run, moved, 0)["is_new"] is False
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database_uri(moved))
    assert bundle.is_whole(Path(mlflow.artifacts.download_artifacts(uri)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["2", "--name", "m", "--alias", "a"], "must be a finished one, but trial 2 is waiting"),
        (["0.2", "--name", "m", "--alias", "a"], "trial 0 is finished with 2 outcomes"),
        (["99", "--name", "m", "--alias", "a"], "`trial` must be one of the 3"),
        (["x", "--name", "m", "--alias", "a"], "`trial` must be a number like 7"),
        (["0", "--name", "a/b", "--alias", "a"], "`--name` must be letters"),
        (["0", "--name", "m", "--alias", "v3"], "`--alias` must be letters"),
        (["0", "--name", "m", "--alias", "latest"], "`--alias` must be letters"),
    ],
)
def test_what_cannot_be_promoted_is_one_line_and_code_2(run, sweep, words, message):
    code, out, err = run("promote", sweep, *words)

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_a_damaged_bundle_is_not_promoted(run, sweep):
    (sweep / "trials" / "0001" / "model" / "model.safetensors").write_bytes(b"")

    code, _, err = run("promote", sweep, 1, "--name", "m", "--alias", "a")

    assert (code, err.count("\n")) == (2, 1)
    assert "must match its checksum" in err


def test_a_trial_whose_run_lies_in_mlflows_bin_gets_it_back(run, sweep):
    client = open_client(database_uri(sweep))
    run_id = Ledger.open(sweep).record(1).mlflow_run_id
    client.delete_run(run_id)

    assert promoted(run, sweep, 1)["is_new"] is True
    assert client.get_run(run_id).info.lifecycle_stage == "active"


def test_a_trial_whose_run_is_gone_for_good_is_told_how_to_get_it_back(run, sweep):
    ledger = Ledger.open(sweep)
    ledger.track(1, "0" * 32)
    ledger.close()

    code, _, err = run("promote", sweep, 1, "--name", "m", "--alias", "a")

    assert (code, err.count("\n")) == (2, 1)
    assert "`conformer-sweep resume" in err


def delete_version(client):
    client.delete_model_version("digits", "1")


def delete_model(client):
    client.delete_registered_model("digits")


@pytest.mark.parametrize("delete", [delete_version, delete_model])
def test_what_was_deleted_from_the_registry_is_registered_anew(run, sweep, delete):
    promoted(run, sweep, 0)
    client = open_client(database_uri(sweep))
    delete(client)

    again = promoted(run, sweep, 0)

    assert again["is_new"] is True
    assert str(client.get_model_version_by_alias("digits", "best").version) == again["version"]


def test_an_mlflow_that_is_away_is_one_line(run, sweep):
    text = (sweep / "sweep.toml").read_text().replace('uri = ""', 'uri = "http://127.0.0.1:9"')
    (sweep / "sweep.toml").write_text(text)

    code, _, err = run("promote", sweep, 0, "--name", "m", "--alias", "a")

    assert (code, err.count("\n")) == (2, 1)
    assert "MLflow at `http://127.0.0.1:9` cannot be opened" in err
