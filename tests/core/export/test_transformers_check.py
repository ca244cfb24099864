"""transformers' own class and processor, in a process of theirs, do what our model does."""

import contextlib
import importlib.util
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from core import bundle
from core.config.trial import CorpusConfig
from core.data.tokenizer import Tokenizer
from core.export.export import export
from core.export.parakeet import write_parakeet
from core.export.transformers_check import (
    Batch,
    check_export,
    needs_transformers,
    run_transformers,
)
from core.importers.load import import_model
from core.inference.graph_interface import ExportError
from core.one_shot.by_weights import config_of, prune_bundle
from core.safe_text import markdown_text
from core.testing import SHAPE, ragged_speech, small_model, with_frontend, with_transducer
from tests.support.drawn_recognizers import balance, short_tokenizer

pytestmark = pytest.mark.whole

needs = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs the extra `transformers`"
)
TEXTS = ["turn the kitchen light on", "what is the time now", "set a timer for ten minutes"]
LENGTHS = (203, 91, 40, 9)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    folder, chance = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    for name, length in (("a.wav", 16_000), ("b.wav", 41_234)):
        soundfile.write(folder / name, 0.1 * chance.standard_normal(length), 16_000)
    return [folder / "a.wav", folder / "b.wav"]


@pytest.fixture(scope="module")
def published(save_parakeet, tmp_path_factory):
    """A `ParakeetForCTC` of chance, and in it the bundle that it becomes."""
    folder = tmp_path_factory.mktemp("published")
    tokenizer = Tokenizer.train(TEXTS, CorpusConfig(tokens="bpe", vocabulary=40), folder)
    (folder / "tokenizer.model").write_bytes(tokenizer.without_blank())
    save_parakeet(folder, tokenizer.size, num_hidden_layers=3)
    import_model(str(folder), folder / "bundle")
    return folder / "bundle"


def same_log_probabilities(model, folder):
    """On a batch that is padded as their processor does."""
    features, num_frames = ragged_speech(*LENGTHS)
    features *= (torch.arange(features.shape[1]) < num_frames[:, None])[:, :, None]
    with torch.no_grad():
        expected = model(features, num_frames)

    batch = Batch.of_features(model, features, LENGTHS)
    (found,) = run_transformers(folder, model, batches=[batch]).log_probabilities

    torch.testing.assert_close(found, expected.log_probs(), rtol=0, atol=1e-5)


@pytest.mark.long
@needs
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lstm rnnt", "lstm tdt"])
def test_a_pruned_transducer_says_the_same_there(kind, sounds, tmp_path):
    tokenizer = short_tokenizer(tmp_path)
    shape = replace(with_frontend(SHAPE, "dw_striding 8x"), vocabulary=tokenizer.size)
    model = small_model(5, shape=with_transducer(shape, kind))
    model.frontend.mean.zero_()
    model.frontend.deviation.fill_(1.0)
    balance(model)
    bundle.save(tmp_path / "model", model, tokenizer, {})

    done = export(tmp_path / "model", tmp_path / "out", "transformers", verify_on=sounds)

    assert "for 2 of 2 sounds, 2 of them with words" in " ".join(done.verified)
    assert "ParakeetFor" in done.verified[0]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "output.sequences" in card


@pytest.mark.long
@needs
@pytest.mark.slow
def test_a_parakeet_pruned_here_says_the_same_there(published, sounds, tmp_path):
    axes = ["frontend", "head", "inner", "channel", "module"]
    config = config_of(published, {"method": "uniform", "target_sparsity": 0.4, "axes": axes})
    prune_bundle(config, tmp_path / "pruned")

    done = export(tmp_path / "pruned", tmp_path / "out", "transformers", verify_on=sounds)

    model = bundle.load(tmp_path / "pruned").model
    assert model.shape.blocks != bundle.load(published).model.shape.blocks
    same_log_probabilities(model, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert set(done.files) == {path.name for path in (tmp_path / "out").iterdir()}
    assert any("for 2 of 2 sounds" in line for line in done.verified)
    assert all(markdown_text(line) in card for line in done.verified)
    assert "more parameters here" in card


@pytest.mark.long
@needs
@pytest.mark.slow
def test_a_parakeet_that_came_leaves_as_it_came(published, sounds, tmp_path):
    export(published, tmp_path / "out", "transformers", verify_on=sounds)

    source, left = (
        load_file(each / "model.safetensors") for each in (published.parent, tmp_path / "out")
    )

    same_log_probabilities(bundle.load(published).model, tmp_path / "out")
    assert set(left) == set(source)
    for name, tensor in source.items():
        if "subsampling.linear" not in name:  # which holds the input's scale now
            assert torch.equal(left[name], tensor), name
    assert "parameters more here" not in (tmp_path / "out" / "README.md").read_text()


@needs
@pytest.mark.slow
def test_a_model_built_here_that_hears_so_leaves_too(sounds, tmp_path):
    texts, config = ["ABCD", "BAD"], CorpusConfig(tokens="word", vocabulary=7)
    tokenizer = Tokenizer.train(texts, config, tmp_path)
    shape = replace(with_frontend(SHAPE, "dw_striding 8x"), vocabulary=tokenizer.size)
    model = small_model(shape=shape)
    model.frontend.mean.zero_()
    model.frontend.deviation.fill_(1.0)
    bundle.save(tmp_path / "model", model, tokenizer, {"outcome": {"wer": 0.25}})

    done = export(tmp_path / "model", tmp_path / "out", "transformers", verify_on=sounds)

    assert any("log-probabilities are ours within 1e-05" in line for line in done.verified)
    assert "WER on dev | 25.00 %" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.long
@needs
@pytest.mark.slow
def test_other_weights_other_tokens_and_torn_files_are_found_out(published, sounds, tmp_path):
    opened = bundle.load(published)
    (tmp_path / "out").mkdir()
    write_parakeet(opened.model, opened.tokenizer, tmp_path / "out")
    weights, tokens = tmp_path / "out/model.safetensors", tmp_path / "out/tokenizer.json"
    tensors, written = load_file(weights), tokens.read_text(encoding="utf-8")

    tokens.write_text(written.replace("\u2047", "?"), encoding="utf-8")
    with pytest.raises(
        ExportError, match=r"must decode tokens to the same text, but gives `.*` instead"
    ):
        check_export(opened, tmp_path / "out", sounds)
    tokens.write_text(written, encoding="utf-8")
    save_file(tensors | {"ctc_head.bias": tensors["ctc_head.bias"].roll(1)}, weights)
    with pytest.raises(ExportError, match=r"log-probabilities within 1e-05.*differ by"):
        check_export(opened, tmp_path / "out", sounds)
    save_file({k: t for k, t in tensors.items() if k != "ctc_head.bias"}, weights)
    with pytest.raises(ExportError, match=r"must load and run `out` .*ended with 1.*ctc_head.bias"):
        check_export(opened, tmp_path / "out", sounds)


def test_without_transformers_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)

    with pytest.raises(ExportError, match=r'`transformers`.*"conformer-sweep\[transformers\]"'):
        needs_transformers()


@pytest.mark.long
@needs
@pytest.mark.slow
def test_a_module_that_a_model_brings_along_is_never_imported(published, tmp_path):
    folder, mark = tmp_path / "model", tmp_path / "mark"
    export(published, folder, "transformers")
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    autos = ("Config", "Model", "ModelForCTC", "Processor", "Tokenizer", "FeatureExtractor")
    files = sorted(folder.glob("*config.json"))
    for file in files:
        values = json.loads(file.read_text())
        values["auto_map"] = {f"Auto{name}": "evil.Evil" for name in autos}
        file.write_text(json.dumps(values))

    with contextlib.suppress(ExportError):  # refused or passed over, either is right
        run_transformers(folder, small_model(), spelled=[[1]])
    import_model(str(folder), tmp_path / "again")

    assert len(files) >= 2
    assert not mark.exists()
