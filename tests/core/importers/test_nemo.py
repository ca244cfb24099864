"""What NeMo computed, we compute, from its archives and its waveforms."""

from pathlib import Path

import numpy as np
import pytest
import torch

from core import bundle
from core.features.nemo import compute_features
from core.importers.load import import_model, read_model
from core.importers.nemo import CONFIG, from_nemo
from core.importers.safe_read import ImportingError, read_archive
from core.importers.settings import Settings

MODELS = Path(__file__).parents[4] / "shared/data/models"
NAMES = ["conformer-4x", "fastconformer-8x"]
pytestmark = pytest.mark.skipif(not MODELS.is_dir(), reason="../shared/data/models is not there")


def computed_by_nemo(name):
    """Blank first, as ours is."""
    with np.load(MODELS / f"{name}.npz") as arrays:
        tensors = {key: torch.from_numpy(arrays[key]) for key in arrays}
    tensors["log_probabilities"] = tensors["log_probabilities"].roll(1, dims=-1)
    return tensors


@pytest.mark.parametrize("name", NAMES)
def test_log_probabilities_are_nemos_on_every_valid_frame(name):
    model, theirs = from_nemo(MODELS / f"{name}.nemo").model, computed_by_nemo(name)

    ours = model(theirs["features"].transpose(1, 2), theirs["feature_length"])

    assert torch.equal(ours.num_frames, theirs["output_length"])
    for i, real in enumerate(theirs["output_length"]):
        torch.testing.assert_close(
            ours.logits[i, :real].log_softmax(-1),
            theirs["log_probabilities"][i, :real],
            rtol=0,
            atol=1e-5,
        )


@pytest.mark.parametrize("name", NAMES)
def test_from_the_waveform_on_it_hears_as_nemo_does(name):
    model, theirs = from_nemo(MODELS / f"{name}.nemo").model, computed_by_nemo(name)

    features, num_frames = compute_features(
        model.shape.frontend_spec, theirs["waveform"], theirs["waveform_length"]
    )
    ours = model(features, num_frames)

    assert torch.equal(num_frames, theirs["feature_length"])
    for i, real in enumerate(num_frames):
        expected = theirs["features"][i, :, :real].T
        torch.testing.assert_close(features[i, :real], expected, rtol=0, atol=1e-4)
    for i, real in enumerate(theirs["output_length"]):
        torch.testing.assert_close(
            ours.logits[i, :real].log_softmax(-1),
            theirs["log_probabilities"][i, :real],
            rtol=0,
            atol=3e-5,  # each processor rounds features otherwise; on NeMo's own 1e-5
        )


def test_a_brought_model_is_a_bundle_with_its_tokens_shifted_by_the_blank(tmp_path):
    brought = import_model(str(MODELS / "conformer-4x.nemo"), tmp_path / "teacher")

    read = bundle.load(tmp_path / "teacher")

    assert read.model.shape == brought.model.shape
    assert read.tokenizer.pieces[:3] == ["<blk>", "<unk>", "\u2581"]
    assert read.tokenizer.decode(read.tokenizer.encode("the cat will wait")) == "the cat will wait"
    assert read.report["imported"]["source"] == "conformer-4x.nemo"
    with pytest.raises(ImportingError, match=r"`OUT` must be a new folder"):
        import_model(str(MODELS / "conformer-4x.nemo"), tmp_path / "teacher")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "rel_pos\n",
            "rel_pos_local_attn\n",
            r"self_attention_model.*'rel_pos_local_attn' instead",
        ),
        ("normalize: per_feature", "normalize: all_features", r"preprocessor.normalize.*or None"),
        ("features: 80", "features: 128", r"`encoder.feat_in` .* must be 128, but is 80"),
        ("features: 80", "features: 300", r"`preprocessor.features` .* whole number from 1 to 256"),
        ("  window_size: 0.025\n", "", r"`preprocessor.window_size`.*0.025, but is 0.02"),
        ("d_model: 64", "d_model: 65", r"`encoder.d_model`.* divisible by n_heads = 4, but is 65"),
        ("n_layers: 2", "n_layers: 3", r"lacks `encoder.layers.2\..*` \(39 missing, 0 unknown\)"),
        ("n_layers: 2", "n_layers: 100000", r"`encoder.n_layers`.* whole number from 1 to 512"),
        ("kernel_size: 31", "kernel_size: 30", r"`encoder.conv_kernel_size`.*must be odd"),
        ("kernel_size: 31", "kernel_size: 29", r"depthwise_conv.weight.*shape \(64, 1, 29\)"),
        ("num_classes: 64", "num_classes: 63", r"`decoder.num_classes`.*must be 64"),
        ("type: bpe", "type: wpe", r"`tokenizer.type`.*must be 'bpe'"),
        ("model_path: nemo:", "model_path: nemo:../", r"`tokenizer.model_path`.*of the archive"),
    ],
)
def test_another_kind_of_model_is_refused_by_the_setting_that_makes_it_one(
    before, after, message, tmp_path, repack
):
    files = read_archive(MODELS / "conformer-4x.nemo")
    changed = files[CONFIG].decode().replace(before, after)
    assert changed != files[CONFIG].decode()

    file = repack(tmp_path / "other.nemo", files | {CONFIG: changed.encode()})

    with pytest.raises(ImportingError, match=message):
        read_model(file)


def test_settings_are_asked_by_dotted_names_whatever_lies_above_them():
    settings = Settings(file="f", values={"a": {"b": 3}, "c": 1})

    assert settings.whole("a.b") == 3
    assert settings.get("c.d.e", "nothing") == "nothing"
    with pytest.raises(ImportingError, match=r"`a.x` of `f` must be a whole number from 1 to 4"):
        settings.whole("a.x", high=4)
