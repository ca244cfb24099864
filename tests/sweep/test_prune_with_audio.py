"""`prune --audio`: from a bundle and some speech to a front of bundles, in one command."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from core import bundle
from core.config.trial import CorpusConfig
from core.data.tokenizer import Tokenizer
from core.testing import SHAPE, small_model
from sweep.cli.prune_command import spread_shares

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    config = CorpusConfig(tokens="char", vocabulary=12)
    tokenizer = Tokenizer.train(["ONE TWO", "TEN"], config, folder)
    whole = small_model(shape=replace(SHAPE, vocabulary=tokenizer.size))
    bundle.save(folder / "model", whole, tokenizer, {"longest_trained_seconds": 2.0})
    return folder / "model"


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    rng = np.random.default_rng(0)
    for number in range(10):
        soundfile.write(folder / f"{number}.wav", 0.1 * rng.standard_normal(48_000), 16_000)
    return folder


def kept_units(folder):
    return bundle.load(folder).report["kept_units"]


def test_every_share_becomes_a_bundle_that_meets_it_and_smaller_ones_lie_in_larger_ones(
    run, model, speech, tmp_path
):
    out = tmp_path / "out"

    code, printed, err = run(
        "prune", model, "--audio", speech, "--remove", 0.3, 0.6, "--out", out, "--json"
    )

    assert code == 0, err
    values = json.loads(printed)
    assert values == json.loads((out / "front.json").read_text())
    unpruned, *pruned = values["models"]
    assert (unpruned["kl"], unpruned["words_changed"], unpruned["flops_sparsity"]) == (0, 0, 0)
    assert [row["target"] for row in pruned] == [0.3, 0.6]
    for row in pruned:
        assert row["flops_sparsity"] >= row["target"]
        found = bundle.load(out / row["folder"])
        assert sum(p.numel() for p in found.model.parameters()) == row["params"]
        assert row["kl"] > 0
    large, small = (kept_units(out / row["folder"]) for row in pruned)
    assert all(set(small[axis]) <= set(large[axis]) for axis in large)


def test_what_an_interrupted_run_has_finished_stays_as_it_is(run, model, speech, tmp_path):
    out = tmp_path / "out"
    assert run("prune", model, "--audio", speech, "--remove", 0.3, "--out", out)[0] == 0
    (out / "front.json").unlink()
    finished = [out / "tables.safetensors", *(out / "removed-30").iterdir()]
    before = {path: path.stat().st_mtime_ns for path in finished}

    code, printed, _ = run("prune", model, "--audio", speech, "--remove", 0.3, 0.5, "--out", out)

    assert code == 0
    assert "removed-50" in printed
    assert {path: path.stat().st_mtime_ns for path in finished} == before


def test_an_unpruned_share_leaves_the_model_as_it_is(run, model, speech, tmp_path):
    """At 0 nothing is removed, and the sequential repair must change nothing."""
    code, _, err = run("prune", model, "--audio", speech, "--remove", 0, "--out", tmp_path / "out")

    assert code == 0, err
    before, after = bundle.load(model).model, bundle.load(tmp_path / "out" / "removed-0").model
    for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--audio", "{tmp}/empty"], "must hold audio"),
        (["--audio", "{tmp}/missing.wav"], "must be an audio file, but is missing"),
        (["--audio", "{tmp}/broken.wav"], "broken.wav"),
        (["--audio", "{speech}/0.wav"], "must hold 25 s of speech or more, but holds 3.0 s"),
        (["--audio", "{tmp}/silent.wav"], "all of it is silent"),
        (["--audio", "{speech}", "--remove", "1"], "`--remove` must be less than 1"),
        (["--remove", "0.3", "0.5"], "must name one share without `--audio`"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(words, message, run, model, speech, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.wav").write_bytes(b"no audio at all")
    soundfile.write(tmp_path / "silent.wav", np.zeros(48_0000), 16_000)
    filled = [word.format(tmp=tmp_path, speech=speech) for word in words]

    code, out, err = run("prune", model, *filled, "--out", tmp_path / "out")

    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert message in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused(run, model, speech, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("mine")

    code, _, err = run("prune", model, "--audio", speech, "--out", tmp_path / "out")

    assert code == 2
    assert "holds something else" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes"]


@pytest.mark.parametrize(
    ("words", "spread"),
    [
        ("prune m --remove 0.3 0.5 --out o", "prune m --remove 0.3 --remove 0.5 --out o"),
        ("prune m --out o --remove .3 5e-1", "prune m --out o --remove .3 --remove 5e-1"),
        ("prune m --remove 0.3 --seed 5", "prune m --remove 0.3 --seed 5"),
        ("prune --remove 0.3 m", "prune --remove 0.3 m"),
        ("run 0.5", "run 0.5"),
    ],
)
def test_shares_may_follow_one_after_the_other(words, spread):
    assert spread_shares(words.split()) == spread.split()
