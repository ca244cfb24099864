"""Files of format 1, as version 0.1 wrote them, are read as what they were."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from core import bundle
from core.bundle import BundleError
from core.config.trial import CorpusConfig
from core.conformer.shape import read_shape
from core.data.feature_cache import FeatureStore
from core.data.prepare import is_prepared, open_speech
from core.data.tokenizer import Tokenizer
from core.digests import read_prepared, speech_lineage
from core.features.spec import FrontendSpec
from core.inference.exported_model import features_text, read_features
from core.inference.windows import Windowing
from core.report import KEPT_UNITS
from core.testing import SHAPE, ragged_speech, small_model, with_frontend
from core.training import checkpoint
from core.training.checkpoint import CheckpointError

TEXTS = ["one two three", "two three four", "four one"]
SPEC = FrontendSpec(
    features="nemo", normalization="per_feature", subsampling_kind="dw_striding", stages=3
)
SPEC_1 = """{
 "features": "nemo",
 "normalisation": "per_feature",
 "preemphasis": 0.97,
 "window": "hann",
 "frontend": "dw_striding",
 "stages": 3
}"""
SHAPE_1 = f"""{{
 "format": 1,
 "sub1": 6,
 "sub2": 5,
 "width": 16,
 "position_width": 16,
 "head_width": 4,
 "kernel": 5,
 "vocabulary": VOCABULARY,
 "blocks": [
  {{"ff1": 12, "heads": 3, "channels": 10, "ff2": 9, "linear_features": 0}},
  {{"ff1": 8, "heads": 2, "channels": 6, "ff2": 11, "linear_features": 0}}
 ],
 "sub3": 7,
 "hearing": {SPEC_1}
}}"""
REPORT_1 = """{
 "outcome": {"wer": 0.25},
 "config": {"corpus": {"max_seconds": 30.0}},
 "kept": {"blocks.0": [0], "blocks.1": []},
 "longest_heard": 8.0
}"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    config = CorpusConfig(tokens="word", vocabulary=20)
    return Tokenizer.train(TEXTS, config, tmp_path_factory.mktemp("tokens"))


@pytest.fixture
def model(tokenizer):
    shape = replace(with_frontend(SHAPE, "dw_striding 8x"), vocabulary=tokenizer.size)
    return small_model(shape=shape)


@pytest.fixture
def bundle_1(tokenizer, model, tmp_path):
    """A folder as version 0.1 left it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "shape.json").write_text(SHAPE_1.replace("VOCABULARY", str(tokenizer.size)))
    (folder / "report.json").write_text(REPORT_1)
    save_file(model.state_dict(), folder / "model.safetensors")
    tokenizer.save(folder / "tokenizer.model")
    sums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    (folder / "checksums.json").write_text(json.dumps(sums))
    return folder


def test_a_bundle_of_format_1_is_the_model_that_was_written(bundle_1, model):
    loaded = bundle.load(bundle_1)
    speech = ragged_speech(61, 40)

    assert loaded.model.shape == model.shape
    assert loaded.model.frontend_spec == SPEC
    assert torch.equal(loaded.model(*speech).logits, model(*speech).logits)
    assert loaded.report[KEPT_UNITS] == {"blocks.0": [0], "blocks.1": []}
    assert Windowing.fitting(loaded.report).seconds == 12.0
    assert not {"kept", "longest_heard"} & set(loaded.report)


def test_a_bundle_of_format_1_is_saved_again_as_one_of_format_2(bundle_1, tmp_path):
    loaded = bundle.load(bundle_1)

    bundle.save(tmp_path / "again", loaded.model, loaded.tokenizer, loaded.report)

    shape = json.loads((tmp_path / "again" / "shape.json").read_text())
    assert shape["format"] == 2
    assert "hearing" not in shape
    again = bundle.load(tmp_path / "again")
    assert (again.model.shape, again.report) == (loaded.model.shape, loaded.report)


def test_a_native_shape_of_format_1_has_native_features():
    plain = SHAPE.to_plain()

    assert read_shape({"format": 1, **plain}) == read_shape({"format": 2, **plain}) == SHAPE


@pytest.mark.parametrize("written", [None, 0, 3, "2", [2]])
def test_a_shape_of_an_unknown_format_is_refused(written):
    with pytest.raises(ValueError, match=r"must be of format 1 or 2, but is .* instead; a newer"):
        read_shape({"format": written, **SHAPE.to_plain()})


@pytest.mark.parametrize("value", [None, [], {}, {"frontend": "mel"}, "kaldi"])
def test_damaged_features_of_a_shape_of_format_1_are_refused(value):
    with pytest.raises(ValueError, match=r"`frontend\.\*` must be exactly"):
        read_shape({"format": 1, **SHAPE.to_plain(), "hearing": value})


def test_keys_of_format_1_are_unknown_to_format_2():
    with pytest.raises(ValueError, match="must be exactly"):
        read_shape({"format": 2, **SHAPE.to_plain(), "hearing": json.loads(SPEC_1)})


def test_features_json_of_format_1_names_the_same_features(tmp_path):
    file = tmp_path / "features.json"
    file.write_text('{"format": 1, ' + SPEC_1.removeprefix("{"))
    assert read_features(file) == SPEC

    file.write_text(features_text(SPEC))
    assert json.loads(file.read_text())["format"] == 2
    assert read_features(file) == SPEC

    file.write_text('{"format": 2, ' + SPEC_1.removeprefix("{"))
    with pytest.raises(BundleError, match=r"features\.json"):
        read_features(file)


def write_store_1(folder, spec):
    """A store of features of two utterances of one frame."""
    folder.mkdir(parents=True)
    np.savez(
        folder / "arrays.npz",
        begins=np.array([0, 1, 2]),
        token_begins=np.array([0, 1, 2]),
        tokens=np.array([1, 2], dtype=np.int32),
        seconds=np.array([1.0, 1.0]),
    )
    (folder / "features.bin").write_bytes(bytes(2 * 80 * 4))
    (folder / "index.json").write_text(
        '{"dtype": "float32", "left_out": {}, '
        + spec
        + '"ids": ["a", "b"], "texts": ["one", "two"]}'
    )


@pytest.mark.parametrize(
    ("written", "spec"), [("", None), (f'"hearing": {SPEC_1}, ', SPEC)], ids=["unnamed", "named"]
)
def test_a_feature_store_of_format_1_is_opened(written, spec, tmp_path):
    write_store_1(tmp_path / "dev-1", written)

    store = FeatureStore.open(tmp_path / "dev-1")

    assert store.frontend_spec == spec
    assert store.texts == ["one", "two"]


def test_prepared_speech_of_format_1_is_opened_and_not_prepared_again(tokenizer, tmp_path):
    write_store_1(tmp_path / "dev-1", "")
    tokenizer.save(tmp_path / "tokenizer.model")
    corpus = CorpusConfig().model_dump_json()
    (tmp_path / "prepared.json").write_text(
        f'{{"corpus": {corpus}, "digest": "d",'
        ' "stores": {"train": "dev-1", "dev": "dev-1", "test": "dev-1"}, "heard": ["train"]}'
    )

    assert open_speech(tmp_path).pseudo_labeled == {"train"}
    assert speech_lineage(tmp_path).pseudo_labeled == ("train",)
    assert read_prepared(tmp_path)["pseudo_labeled"] == ["train"]
    assert is_prepared(CorpusConfig(), tmp_path)


def test_a_checkpoint_of_format_1_is_refused_in_one_line_that_says_what_to_do(tmp_path):
    folder = tmp_path / "checkpoints" / "000000400"
    folder.mkdir(parents=True)
    state = {"stage": "search", "step": 400, "chance": torch.get_rng_state(), "beside": {}}
    torch.save(state, folder / "state.pt")
    content = (folder / "state.pt").read_bytes()
    (folder / "sha256").write_text(hashlib.sha256(content).hexdigest())

    with pytest.raises(CheckpointError, match=r"is of format 1 instead; delete .*checkpoints` to"):
        checkpoint.load_newest(folder.parent)


def test_a_checkpoint_gives_back_what_was_saved_and_nothing_else(tmp_path):
    checkpoint.save(tmp_path, 1, {"step": 1})

    assert checkpoint.load_newest(tmp_path) == {"step": 1}
