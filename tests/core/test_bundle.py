"""Law 6, the bundle's part: loading gives the same logits; and damage is named."""

import json
from dataclasses import replace

import pytest
import torch

from core import bundle
from core.bundle import BundleError
from core.config.trial import CorpusConfig
from core.data.tokenizer import Tokenizer
from core.files import sha256_file
from core.pruning.extraction import extract
from core.testing import (
    SHAPE,
    deeper,
    ragged_speech,
    random_mask,
    small_model,
    with_factors,
    with_transducer,
)

TEXTS = ["one two three", "two three four", "four one"]


@pytest.fixture(
    params=[
        SHAPE,
        with_factors(SHAPE),
        deeper(2, linear_features=6),
        with_transducer(SHAPE, "lstm tdt", has_ctc=True),
    ],
    ids=["dense", "factored", "linear attention", "hybrid"],
)
def bundle_and_model(tmp_path, request):
    config = CorpusConfig(tokens="word", vocabulary=20)
    tokenizer = Tokenizer.train(TEXTS, config, tmp_path / "tokens")
    model = small_model(shape=replace(request.param, vocabulary=tokenizer.size))
    small = extract(model, random_mask(model.axes(), "empty_modules"))
    bundle.save(tmp_path / "model", small, tokenizer, {"wer": 0.25})
    return tmp_path / "model", small


def test_an_export_is_told_from_a_bundle(tmp_path):
    (tmp_path / "model.onnx").touch()

    with pytest.raises(BundleError, match=r"is an export .*; give the bundle or DIR:TRIAL"):
        bundle.load(tmp_path)


def test_a_loaded_bundle_gives_the_same_logits_and_words(bundle_and_model):
    folder, model = bundle_and_model
    loaded = bundle.load(folder)
    speech = ragged_speech(61, 40)

    assert torch.equal(loaded.model(*speech).logits, model(*speech).logits)
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("two one")) == "two one"
    assert loaded.report["wer"] == 0.25


@pytest.mark.parametrize(
    "name", ["shape.json", "model.safetensors", "tokenizer.model", "report.json"]
)
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
def test_a_damaged_bundle_is_refused_by_the_name_of_its_file(bundle_and_model, name, damage):
    folder, _ = bundle_and_model
    file = folder / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-5] if damage == "truncated" else b"")

    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        bundle.load(folder)
    assert not bundle.is_whole(folder)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(BundleError, match=r"there is no such folder"):
        bundle.load(tmp_path / "nothing")
    with pytest.raises(BundleError, match=r"checksums.json is missing or damaged"):
        bundle.load(tmp_path)


def test_weights_that_do_not_fit_the_shape_are_refused(bundle_and_model):
    folder, _ = bundle_and_model
    plain = json.loads((folder / "shape.json").read_text())
    plain["width"] += 1
    rewrite(folder, "shape.json", json.dumps(plain))

    with pytest.raises(BundleError, match=r"model\.safetensors` must fit shape\.json"):
        bundle.load(folder)


def test_a_bundle_of_another_format_is_refused(bundle_and_model):
    folder, _ = bundle_and_model
    plain = json.loads((folder / "shape.json").read_text()) | {"format": 99}
    rewrite(folder, "shape.json", json.dumps(plain))

    with pytest.raises(BundleError, match=r"must be of format 1 or 2, but is of 99"):
        bundle.load(folder)


def rewrite(folder, name, text):
    (folder / name).write_text(text)
    checksums = json.loads((folder / "checksums.json").read_text())
    checksums[name] = sha256_file(folder / name)
    (folder / "checksums.json").write_text(json.dumps(checksums))


def test_saving_again_replaces_the_whole(bundle_and_model):
    folder, _ = bundle_and_model
    loaded = bundle.load(folder)

    bundle.save(folder, loaded.model, loaded.tokenizer, {"wer": 0.5})

    assert bundle.load(folder).report["wer"] == 0.5
    assert [p.name for p in folder.parent.iterdir() if p.name.startswith(".")] == []
