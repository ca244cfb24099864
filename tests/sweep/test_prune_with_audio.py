"""`prune --audio`: from a bundle and some speech to a front of bundles, in one command."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from core import bundle
from core.config.trial import CorpusConfig
from core.data.calibration_speech import read_calibration_speech
from core.data.tokenizer import Tokenizer
from core.one_shot.with_speech import PruningRequest, measure_sensitivity
from core.pruning.extraction import extract
from core.testing import SHAPE, small_model
from sweep.cli.prune_command import spread_shares

ARCHIVE = Path(__file__).parents[3] / "shared/data/models/fastconformer-8x.nemo"
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


def test_an_interruption_in_the_middle_of_the_tables_changes_nothing(model, speech, tmp_path):
    dense = bundle.load(model)
    heard = read_calibration_speech(
        sorted(speech.iterdir()), dense.model.frontend_spec, seconds=60.0
    )
    request = PruningRequest(model=model)
    whole = measure_sensitivity(request, dense, heard, tmp_path / "whole")
    announced = []

    def interrupt(stage):
        announced.append(stage)
        if stage.startswith("measured 3 of"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_sensitivity(request, dense, heard, tmp_path / "out", announce=interrupt)
    first = len(announced)
    again = measure_sensitivity(request, dense, heard, tmp_path / "out", announce=announced.append)

    assert announced[first + 1].startswith("measured 4 of")
    for a, b in zip(whole.tables, again.tables, strict=True):
        assert a.axis == b.axis
        assert torch.equal(a.order, b.order)
        assert torch.equal(a.increase, b.increase)


def test_shares_of_another_resource_have_folders_of_their_own(run, model, speech, tmp_path):
    out = tmp_path / "out"
    words = ("prune", model, "--audio", speech, "--remove", 0.5, "--out", out, "--json")
    _, flops, _ = run(*words)

    code, params, err = run(*words, "--resource", "params")

    assert code == 0, err
    (of_flops,) = json.loads(flops)["models"][1:]
    both = {row["folder"]: row for row in json.loads(params)["models"]}
    of_params = both["removed-50-params"]
    assert both["removed-50"] == of_flops
    assert of_flops["flops_sparsity"] >= 0.5
    assert of_params["params_sparsity"] >= 0.5


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
        (["--audio", "{speech}/0.wav"], "must give 25 s of speech or more, but give 3.0 s"),
        (["--audio", "{tmp}/silent.wav"], "all of it is silent"),
        (["--audio", "{speech}", "--remove", "1"], "`--remove` must be less than 1"),
        (["--audio", "{speech}", "--remove", "0.999"], "`--remove` must be at most 0."),
        (["--remove", "0.3", "0.5"], "must name one share without `--audio`"),
        (["--keep", "blocks.0.ff1=4"], "`--keep` must go with `--audio`"),
        (["--test", "demo"], "`--test` must go with `--audio`"),
        (["--minutes", "2"], "`--minutes` must go with `--audio`"),
        (["--audio", "{speech}", "--split", "dev"], "`--split` must go with `--test`"),
        (["--audio", "{speech}", "--method", "ld"], "`--method` must be left out with `--audio`"),
        (["--audio", "{speech}", "--keep", "blocks.0.ff1"], "but is `blocks.0.ff1`"),
        (["--audio", "{speech}", "--keep", "blocks.0.ff1=-1"], "but is `blocks.0.ff1=-1`"),
        (["--audio", "demo", "--audio", "{speech}"], "must name one corpus or audio files"),
        (["--audio", "librispeech"], "`corpus.root` must be LibriSpeech's folder"),
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


def test_units_chosen_by_hand_are_kept_and_the_others_repaired(run, model, speech, tmp_path):
    """The part's name stands for its units, and a pattern for one axis a block."""
    words = ("--keep", "blocks.0.ff1=4", "--keep", "blocks.*.convolution=5")

    code, printed, err = run(
        "prune", model, "--audio", speech, *words, "--out", tmp_path / "out", "--json"
    )

    assert code == 0, err
    (row,) = json.loads(printed)["models"][1:]
    shape = bundle.load(tmp_path / "out" / row["folder"]).model.shape
    before = bundle.load(model).model.shape
    assert [block.ff1 for block in shape.blocks] == [4, before.blocks[1].ff1]
    assert [block.channels for block in shape.blocks] == [5, 5]
    assert [block.heads for block in shape.blocks] == [block.heads for block in before.blocks]
    assert row["kl"] > 0


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("blocks.7.ff1=4", "but names `blocks.7.ff1` instead"),
        ("blocks.0.ff1=4000", "must keep from 0 to 12 units of `blocks.0.ff1.inner`"),
        ("width=2", "must keep from 8 to 16 units of `width`"),
    ],
)
def test_what_cannot_be_kept_is_refused(keep, message, run, model, speech, tmp_path):
    code, _, err = run("prune", model, "--audio", speech, "--keep", keep, "--out", tmp_path / "out")

    assert code == 2
    assert message in err.splitlines()[-1]


def test_of_two_numbers_for_a_part_the_last_one_counts(run, model, speech, tmp_path):
    words = ("--keep", "blocks.*.ff1=4", "--keep", "blocks.0.ff1=8")

    code, printed, err = run(
        "prune", model, "--audio", speech, *words, "--out", tmp_path / "out", "--json"
    )

    assert code == 0, err
    (row,) = json.loads(printed)["models"][1:]
    shape = bundle.load(tmp_path / "out" / row["folder"]).model.shape
    assert [block.ff1 for block in shape.blocks] == [8, 4]


def test_sizes_of_an_earlier_call_stay_in_the_front(run, model, speech, tmp_path):
    out = tmp_path / "out"
    assert run("prune", model, "--audio", speech, "--remove", 0.6, "--out", out)[0] == 0

    code, printed, err = run(
        *("prune", model, "--audio", speech, "--remove", 0.3, "--out", out, "--json")
    )

    assert code == 0, err
    rows = json.loads(printed)["models"]
    assert [row["folder"] for row in rows] == ["", "removed-30", "removed-60"]


@pytest.mark.parametrize("removed", ["blocks.1", "all"])
def test_a_model_with_empty_blocks_or_none_is_pruned(removed, run, model, speech, tmp_path):
    dense = bundle.load(model)
    gone = [a.name for a in dense.model.axes() if a.kind == "module"]
    parts = gone if removed == "all" else [name for name in gone if name.startswith(removed)]
    blocks = ["blocks.0", "blocks.1"] if removed == "all" else []
    small = extract(dense.model, {name: torch.zeros(1) for name in (*parts, *blocks)})
    bundle.save(tmp_path / "small", small, dense.tokenizer, dense.report)
    assert len(small.blocks) == (0 if removed == "all" else 2)

    code, printed, err = run(
        *("prune", tmp_path / "small", "--audio", speech, "--remove", 0.2),
        *("--out", tmp_path / "out", "--json"),
    )

    assert code == 0, err
    assert json.loads(printed)["models"][1]["flops_sparsity"] >= 0.2
    code, _, err = run(
        "sensitivity", tmp_path / "small", "--audio", speech, "--out", tmp_path / "s"
    )
    assert code == 0, err


def test_a_module_without_units_leaves_the_model(run, model, speech, tmp_path):
    code, printed, err = run(
        "prune", model, "--audio", speech, "--keep", "blocks.0.ff1=0", "--out", tmp_path / "out"
    )

    assert code == 0, err
    (folder,) = (path for path in (tmp_path / "out").iterdir() if path.name.startswith("kept-"))
    assert bundle.load(folder).model.shape.blocks[0].ff1 == 0
    assert folder.name in printed


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, speech):
    """Ten training and two test utterances in the LibriSpeech layout."""
    root = tmp_path_factory.mktemp("corpus")
    for split, files in {"train-a": range(10), "dev-a": [0, 1], "test-a": [2, 3]}.items():
        chapter = root / split / "1" / "1"
        chapter.mkdir(parents=True)
        for number in files:
            samples, rate = soundfile.read(speech / f"{number}.wav")
            soundfile.write(chapter / f"1-1-{split}-{number}.flac", samples, rate)
        lines = [f"1-1-{split}-{number} ONE TWO" for number in files]
        (chapter / "1-1.trans.txt").write_text("\n".join(lines) + "\n")
    return root


def test_where_there_are_transcripts_the_word_error_rate_is_that_of_evaluate(
    run, model, speech, corpus, tmp_path
):
    out = tmp_path / "out"
    code, printed, err = run(
        "prune", model, "--audio", speech, "--test", corpus, "--out", out, "--json"
    )
    assert code == 0, err
    values = json.loads(printed)

    for row in values["models"]:
        judged = out / row["folder"] if row["folder"] else model
        _, evaluated, _ = run("evaluate", judged, corpus, "--json")
        assert row["wer"] == json.loads(evaluated)["wer"]
    assert values["test"] == f"{corpus} test"
    assert f"WER (%) on {corpus} test" in (out / "front.html").read_text()

    # Again, without: what is there is not measured again, and nothing is claimed.
    _, printed, _ = run("prune", model, "--audio", speech, "--out", out, "--json")
    assert [row["wer"] for row in json.loads(printed)["models"]] == [None, None]


def test_a_corpus_is_calibrated_on_by_its_training_split_without_its_words(
    run, model, corpus, tmp_path
):
    """Lhotse's manifests name audio that lies elsewhere; the training split has no words here."""
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    for split in ("train-a", "dev-a", "test-a"):
        rows = [
            {"audio_filepath": str(file), "duration": 3.0, "text": "ONE"}
            for file in sorted((corpus / split).rglob("*.flac"))
        ]
        for row in rows if split == "train-a" else []:
            del row["text"]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (manifests / f"{split}.json").write_text(text)

    code, printed, err = run(
        "prune", model, "--audio", manifests, "--out", tmp_path / "out", "--json"
    )

    assert code == 0, err
    assert json.loads(printed)["calibration_seconds"] == pytest.approx(24.0)


@pytest.mark.skipif(not ARCHIVE.is_file(), reason="needs ../shared/data/models")
def test_another_librarys_model_is_imported_first(run, speech, tmp_path):
    out = tmp_path / "out"

    code, printed, err = run("prune", ARCHIVE, "--audio", speech, "--out", out, "--json")

    assert code == 0, err
    unpruned, pruned = json.loads(printed)["models"]
    assert pruned["params"] < unpruned["params"]
    other = tmp_path / "other.nemo"
    shutil.copy(ARCHIVE, other)
    code, _, err = run("prune", other, "--audio", speech, "--out", out)
    assert code == 2
    assert "`--out` must be a new folder, or one that was made of" in err
    assert unpruned["params"] == sum(
        p.numel() for p in bundle.load(out / "unpruned").model.parameters()
    )


def test_sensitivity_shows_every_part_and_prune_goes_on_from_its_tables(
    run, model, speech, tmp_path
):
    out = tmp_path / "out"

    code, printed, err = run("sensitivity", model, "--audio", speech, "--out", out, "--json")

    assert code == 0, err
    rows = json.loads(printed)
    assert rows == json.loads((out / "sensitivity.json").read_text())
    assert {"width", "blocks.0.ff1.inner", "blocks.1.attention.head"} <= {r["axis"] for r in rows}
    for row in rows:
        assert row["counts"] == sorted(row["counts"])
        assert row["kl"] == sorted(row["kl"])
        assert 0 < row["flops_share"] < 1
    assert {"sensitivity.html", "sensitivity.png"} <= {path.name for path in out.iterdir()}
    tables = (out / "tables.safetensors").stat().st_mtime_ns

    assert run("prune", model, "--audio", speech, "--out", out)[0] == 0

    assert (out / "tables.safetensors").stat().st_mtime_ns == tables


def test_sensitivity_needs_speech(run, model, tmp_path):
    code, _, err = run("sensitivity", model, "--out", tmp_path / "out")

    assert code == 2
    assert "`--audio` must name speech" in err


def test_a_folder_of_something_else_is_refused(run, model, speech, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("mine")

    code, _, err = run("prune", model, "--audio", speech, "--out", tmp_path / "out")

    assert code == 2
    assert "must be a new folder, or one that was made with the same model" in err
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
