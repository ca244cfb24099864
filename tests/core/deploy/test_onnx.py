"""Law 6, ONNX's part: the graph gives the model's log-probabilities within 1e-4."""

import numpy as np
import onnxruntime
import pytest
import torch

from core.deploy.onnx import export_onnx
from core.pruning.extraction import extract
from core.testing import deeper, ragged_speech, random_mask, small_model, with_factors

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("open", deeper(2)),
        ("binary", deeper(2)),
        ("empty_modules", deeper(2)),
        ("all_modules_empty", deeper(2)),
        ("empty_blocks", deeper(2)),
        ("binary", with_factors(deeper(2))),
        ("binary", deeper(2, linear_features=6)),
    ],
)
def test_the_graph_gives_the_models_log_probabilities(kind, shape, tmp_path):
    model = small_model(shape=shape)
    small = extract(model, random_mask(model.axes(), kind))
    export_onnx(small, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")

    for lengths in [(61, 40), (203,), (9, 8, 7), (400, 399, 12, 7, 100)]:
        features, num_frames = ragged_speech(*lengths)
        output = small(features, num_frames)
        feed = {"features": features.numpy(), "num_frames": num_frames.numpy()}
        log_probabilities, num_output_frames = session.run(None, feed)

        assert num_output_frames.tolist() == output.num_frames.tolist()
        expected = output.logits.log_softmax(-1).detach()
        gap = np.abs(log_probabilities - expected.numpy())[output.is_frame.numpy()].max()
        assert gap < 1e-4


def test_nothing_half_written_is_left(tmp_path):
    export_onnx(small_model(), tmp_path / "model.onnx")

    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert torch.is_grad_enabled()
