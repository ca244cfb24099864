"""A model filled up with zeros computes what it did."""

from dataclasses import replace

import pytest
import torch

from core.conformer.shape import BlockShape
from core.export.padding import pad_to_shape
from core.pruning.extraction import extract
from core.testing import (
    FRONTEND_SPECS,
    deeper,
    ragged_speech,
    random_mask,
    small_model,
    with_factors,
    with_frontend,
)

LARGEST = BlockShape(ff1=14, heads=4, channels=16, ff2=13)


def filled(model):
    """In blocks larger than any of its own, and front ends alike."""
    shape, stages = model.shape, model.shape.frontend_spec.stages
    sizes = {f"sub{i + 1}": 8 if i < stages else 0 for i in range(3)}
    blocks = (LARGEST,) * len(shape.blocks)
    return pad_to_shape(model, replace(shape, **sizes, blocks=blocks, ranks={}))


@pytest.mark.parametrize("heard", FRONTEND_SPECS)
@pytest.mark.parametrize("kind", ["binary", "soft", "empty_modules", "all_modules_empty"])
def test_what_is_filled_up_computes_the_same(kind, heard):
    model = small_model(shape=with_frontend(with_factors(deeper(3)), heard))
    small = extract(model, random_mask(model.axes(), kind))
    features, num_frames = ragged_speech(90, 61, 12)

    expected, found = small(features, num_frames), filled(small)(features, num_frames)

    torch.testing.assert_close(
        found.logits[expected.is_frame], expected.logits[expected.is_frame], rtol=0, atol=1e-5
    )


def test_what_needs_no_filling_is_itself():
    model = small_model(shape=replace(deeper(2), sub1=8, sub2=8, blocks=(LARGEST,) * 2))

    found = filled(model)

    assert found.shape == model.shape
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)
