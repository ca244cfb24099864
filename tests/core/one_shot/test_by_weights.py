"""Pruning by weights alone: nothing is listened to, and nothing is said of errors."""

import pytest
import torch

from core import bundle
from core.config.base import ConfigError
from core.config.trial import TrialConfig
from core.data.tokenizer import Tokenizer
from core.one_shot.by_weights import check, config_of, prune_bundle, prune_model, remaining
from core.testing import SHAPE, ragged_speech, small_model
from core.training.method import load_method


@pytest.fixture
def dense_bundle(demo_config, tmp_path):
    few = demo_config.model_copy(update={"vocabulary": SHAPE.vocabulary})
    tokens = Tokenizer.train(["GO STOP UP DOWN LEFT"], few, tmp_path)
    bundle.save(tmp_path / "given", small_model(2), tokens, {})
    return tmp_path / "given"


def test_what_remains_needs_nothing_and_lives_without_tuning():
    able = remaining()

    assert {"magnitude", "uniform", "random"} <= set(able)
    assert not {"l0", "comp", "scratch", "foster", "dense", "mope"} & set(able)
    for name in able:
        assert not load_method(name).needs


@pytest.mark.parametrize("method", remaining())
@pytest.mark.parametrize("resource", ["flops", "params"])
def test_every_method_that_remains_meets_its_budget(dense_bundle, tmp_path, method, resource):
    expected = {"method": method, "resource": resource, "target_sparsity": 0.5}

    result = prune_bundle(config_of(dense_bundle, expected), tmp_path / "small")

    small = bundle.load(tmp_path / "small")
    assert result[f"{resource}_sparsity"] >= 0.5
    assert result["params"] == sum(p.numel() for p in small.model.parameters())
    assert result["wer"] is None
    assert "outcome" not in small.report
    features, num_frames = ragged_speech(90, 60)
    assert torch.isfinite(small.model(features, num_frames).logits).all()


def test_with_nothing_to_remove_the_model_is_the_one_that_was_brought(dense_bundle, tmp_path):
    prune_bundle(
        config_of(dense_bundle, {"method": "uniform", "target_sparsity": 0.0}), tmp_path / "b"
    )

    features, num_frames = ragged_speech(90, 60)
    before, after = (
        bundle.load(folder).model(features, num_frames) for folder in (dense_bundle, tmp_path / "b")
    )
    torch.testing.assert_close(after.logits, before.logits, atol=1e-5, rtol=0)


def test_the_smaller_model_shares_no_memory_with_the_one_that_was_brought(dense_bundle):
    teacher = bundle.load(dense_bundle).model
    config = config_of(dense_bundle, {"method": "magnitude", "target_sparsity": 0.1})
    held = {tensor.untyped_storage().data_ptr() for tensor in teacher.state_dict().values()}

    small, _, space = prune_model(config, teacher)

    assert not held & {t.untyped_storage().data_ptr() for t in small.state_dict().values()}
    assert all(parameter.requires_grad for parameter in small.parameters())
    assert {parameter.device.type for parameter in space.model.parameters()} == {"meta"}


def test_what_needs_speech_is_refused_by_what_can_be_done():
    able = ", ".join(remaining())
    config = TrialConfig.parse({"corpus": {"name": "none"}, "teacher": {"bundle": "b"}})

    with pytest.raises(ConfigError) as refused:
        check(config)

    assert str(refused.value).splitlines() == [
        f"`pruning.method` must be one of {able} without speech, but is `l0` instead",
        "`pruning.repair` must be 'none' without speech, but is 'auto' instead",
        "`pruning.steps` must be 0 without speech, but is 400 instead",
        "`tuning.steps` must be 0 without speech, but is 300 instead",
    ]


def test_a_folder_that_is_there_is_left_alone(dense_bundle):
    with pytest.raises(ConfigError, match=r"`out` must be a new folder, but `.*given` is there"):
        prune_bundle(config_of(dense_bundle, {"method": "uniform"}), dense_bundle)
