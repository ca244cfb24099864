"""Law 1: what is extracted computes what was masked; and gates do what their definition says."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.conformer.masking import (
    close_empty_modules,
    fold,
    gated_forward,
    kept_unit_indices,
    named_tensors,
)
from core.conformer.model import Conformer
from core.conformer.norm import LayerNorm
from core.pruning.extraction import extract
from core.testing import (
    FRONTEND_SPECS,
    MASK_KINDS,
    deeper,
    ragged_speech,
    random_mask,
    small_model,
    with_factors,
    with_frontend,
)

DENSE = deeper(3)
LINEAR = deeper(3, linear_features=6)
OTHERS = [kind for kind in FRONTEND_SPECS if kind != "conv4"]
SHAPES = pytest.mark.parametrize(
    "shape",
    [DENSE, with_factors(DENSE), with_factors(LINEAR), *(with_frontend(DENSE, k) for k in OTHERS)],
    ids=["dense", "factored", "linear attention", *OTHERS],
)


def masked(model, features, num_frames, mask, **how):
    return gated_forward(
        model, features, num_frames, fold(named_tensors(model), model.axes(), mask, **how)
    )


@pytest.mark.parametrize("kind", MASK_KINDS)
@pytest.mark.parametrize(
    ("dtype", "tolerance", "seed"),
    [(torch.float32, 1e-5, 0), (torch.float64, 1e-12, 1), (torch.float64, 1e-12, 2)],
)
@SHAPES
def test_the_extracted_model_computes_what_the_masked_one_did(kind, dtype, tolerance, seed, shape):
    model = small_model(seed, shape=shape).to(dtype)
    mask = random_mask(model.axes(), kind, seed)
    features, num_frames = ragged_speech(61, 40, 9, 7, seed=seed, dtype=dtype)

    expected = masked(model, features, num_frames, mask, narrow_from=1.1)
    actual = extract(model, mask)(features, num_frames)

    real = expected.is_frame
    torch.testing.assert_close(
        actual.logits[real], expected.logits[real], rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("kind", ["binary", "soft", "empty_axes", "empty_blocks"])
@SHAPES
def test_it_does_so_in_training_mode_too_where_no_dropout_acts(kind, shape):
    model = small_model(shape=shape).double().train()
    mask = random_mask(model.axes(), kind)
    features, num_frames = ragged_speech(61, 40, 33, dtype=torch.float64)

    expected = masked(model, features, num_frames, mask, narrow_from=1.1)
    actual = extract(model, mask)(features, num_frames)

    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", MASK_KINDS)
@pytest.mark.parametrize("is_training", [False, True])
@SHAPES
def test_gates_that_are_not_read_give_what_gates_that_are_read_give(kind, is_training, shape):
    model = small_model(shape=shape).double().train(is_training)
    features, num_frames = ragged_speech(61, 40, 33, dtype=torch.float64)

    outputs, gradients = [], []
    for narrow_from in (0.0, None):
        mask = random_mask(model.axes(), kind)
        for gates in mask.values():
            gates.requires_grad_()
        output = masked(model, features, num_frames, mask, narrow_from=narrow_from)
        output.logits[output.is_frame].square().sum().backward()
        outputs.append(output.logits[output.is_frame])
        # Units of a closed module are left out where gates are read.
        gradients.append(
            {
                name: torch.zeros(0) if gates.grad is None else gates.grad[gates != 0]
                for name, gates in mask.items()
            }
        )

    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-10)
    for name, gradient in gradients[0].items():
        others = gradients[1][name]
        wanted = gradient if len(gradient) == len(others) else torch.zeros_like(others)
        torch.testing.assert_close(others, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", MASK_KINDS)
@SHAPES
def test_gates_on_tensors_are_gates_at_the_consumers_input(kind, shape):
    model = small_model(shape=shape).double()
    mask = close_empty_modules(model.axes(), random_mask(model.axes(), kind))
    features, num_frames = ragged_speech(61, 40, dtype=torch.float64)

    expected = by_hooks(model, features, num_frames, mask)
    actual = masked(model, features, num_frames, mask)

    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-9, atol=1e-9)


@SHAPES
def test_a_model_without_gates_and_one_with_all_gates_open_agree_bit_for_bit(shape):
    model = small_model(shape=shape)
    features, num_frames = ragged_speech(61, 40)

    expected = model(features, num_frames).logits
    actual = masked(model, features, num_frames, random_mask(model.axes(), "open")).logits

    assert torch.equal(actual, expected)


@SHAPES
def test_a_gradient_reaches_every_open_gate(shape):
    model = small_model(shape=shape)
    mask = random_mask(model.axes(), "soft")
    for gates in mask.values():
        gates.requires_grad_()
    features, num_frames = ragged_speech(61, 40)

    masked(model, features, num_frames, mask).logits.square().sum().backward()

    for name, gates in mask.items():
        assert gates.grad is not None, name
        assert (gates.grad[gates != 0] != 0).all(), name


@pytest.mark.parametrize("closed", [(0,), (2,), (0, 1), (1, 2), (0, 1, 2)])
def test_a_model_without_some_blocks_is_the_others_in_their_order(closed):
    model = small_model(shape=deeper(3))
    features, num_frames = ragged_speech(61, 40)
    others = small_model(shape=deeper(3))
    others.blocks = nn.ModuleList(b for i, b in enumerate(others.blocks) if i not in closed)

    small = extract(model, {f"blocks.{i}": torch.zeros(1) for i in closed})

    assert len(small.blocks) == 3 - len(closed)
    assert torch.equal(small(features, num_frames).logits, others(features, num_frames).logits)


@SHAPES
def test_extracting_twice_is_extracting_once(shape):
    model = small_model(shape=shape)
    once = extract(model, random_mask(model.axes(), "soft"))

    twice = extract(once, {axis.name: torch.ones(axis.size) for axis in once.axes()})

    assert twice.shape == once.shape
    for name, tensor in once.state_dict().items():
        assert torch.equal(twice.state_dict()[name], tensor)


def test_the_extracted_model_shares_nothing_with_the_masked_one():
    model = small_model()
    small = extract(model, random_mask(model.axes(), "open"))

    with torch.no_grad():
        for tensor in small.state_dict().values():
            tensor.fill_(7.0)

    assert not any((t == 7.0).all() for t in model.state_dict().values())


def test_an_axis_below_its_floor_is_refused_by_name():
    model = small_model()

    with pytest.raises(ValueError, match=r"`frontend.sub1` must keep at least 1 units.*keeps 0"):
        extract(model, {"frontend.sub1": torch.zeros(6)})


def by_hooks(model: Conformer, features, num_frames, mask):
    """Gates by their definition: activations are multiplied, and norms count kept units only."""
    handles = [*unit_hooks(model, mask), *width_hooks(model, mask["width"].double())]
    try:
        return model(features, num_frames)
    finally:
        for handle in handles:
            handle.remove()


def unit_hooks(model, mask):
    for axis in model.axes():
        if axis.kind == "width":
            continue
        z = mask[axis.name].double()
        if axis.kind == "block" and not z.any():
            yield model.get_submodule(axis.name).register_forward_hook(passed_by)
            continue
        scaled = [piece for piece in axis.slices if piece.is_scaled]
        for name in dict.fromkeys(piece.tensor.rpartition(".")[0] for piece in scaled):
            consumer = model.get_submodule(name)
            if axis.is_whole:
                yield consumer.register_forward_hook(multiply_output(z))
            else:
                yield consumer.register_forward_pre_hook(multiply_input(z, scaled[0].block))


def width_hooks(model, width):
    for name, module in model.named_modules():
        if name.endswith((".down", ".output")) or name == "frontend.linear":
            yield module.register_forward_hook(multiply_output(width))
        if isinstance(module, LayerNorm):
            yield module.register_forward_hook(norm_over_kept(width))


def passed_by(_module, inputs, _output):
    return inputs[0]


def multiply_input(z, block):
    def hook(module, inputs):
        x = inputs[0]
        if isinstance(module, nn.Conv2d):
            return (x * z[:, None, None],)
        return (x * z.repeat_interleave(block),)

    return hook


def multiply_output(z):
    return lambda _module, _inputs, output: output * z


def norm_over_kept(width):
    def hook(module, inputs, _output):
        kept = kept_unit_indices(width)
        y = F.layer_norm(inputs[0][..., kept], (len(kept),), eps=1e-5)
        out = torch.zeros_like(inputs[0])
        out[..., kept] = (y * module.weight[kept] + module.bias[kept]) * width[kept]
        return out

    return hook
