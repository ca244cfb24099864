"""Law 9: least squares repairs at least as well as mask tuning, and that as well as nothing."""

import math

import pytest
import torch

from core.conformer.masking import fold, named_tensors
from core.pruning.calibration import Consumer, iterate_grams
from core.pruning.extraction import as_mask, extract
from core.pruning.reconstruction import (
    extract_and_reconstruct,
    least_squares_columns,
    reestimate_statistics,
    scale_columns,
)
from core.testing import (
    FRONTEND_SPECS,
    SHAPE,
    deeper,
    ragged_speech,
    random_mask,
    small_model,
    with_factors,
    with_frontend,
)

OTHERS = [kind for kind in FRONTEND_SPECS if kind != "conv4"]


def correlated(rows, columns, seed):
    chance = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=chance, dtype=torch.float64)
    return torch.randn(rows, columns, generator=chance, dtype=torch.float64) @ mix


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_least_squares_is_as_good_as_scaling_and_scaling_as_nothing(block, seed):
    units = 8
    x = correlated(60, units * block, seed)
    weight = correlated(5, units * block, seed + 100)
    kept = torch.rand(units, generator=torch.Generator().manual_seed(seed)) < 0.6
    kept[0], kept[1] = True, False
    inputs = kept.repeat_interleave(block)
    gram = x.T @ x

    def error(columns):
        return (x[:, inputs] @ columns.T - x @ weight.T).square().sum().item()

    factors = scale_columns(gram, weight, kept, block).repeat_interleave(block)
    nothing = error(weight[:, inputs])
    by_mask = error(weight[:, inputs] * factors)
    by_squares = error(least_squares_columns(gram, weight, inputs))

    assert by_squares <= by_mask * (1 + 1e-6)
    assert by_mask <= nothing * (1 + 1e-6)
    exact = torch.linalg.lstsq(x[:, inputs], x @ weight.T).solution.T
    assert by_squares == pytest.approx(error(exact), rel=1e-4)


@pytest.mark.parametrize("how", ["none", "mask", "ls"])
def test_a_unit_that_another_copies_is_repaired_away_without_a_trace(how):
    model = small_model()
    part = model.blocks[0].ff1
    with torch.no_grad():
        part.up.weight[1], part.up.bias[1] = part.up.weight[0], part.up.bias[0]
    choice = {axis.name: torch.ones(axis.size, dtype=torch.bool) for axis in model.axes()}
    choice["blocks.0.ff1.inner"][1] = False
    speech = [ragged_speech(200, 150, 90)]

    small = extract_and_reconstruct(model, {}, choice, how=how, speech=speech)

    features, num_frames = speech[0]
    expected, actual = model(features, num_frames), small(features, num_frames)
    gap = (actual.logits - expected.logits)[expected.is_frame].abs().max()
    assert (gap < 1e-3) == (how == "ls")


@pytest.mark.parametrize("kind", ["binary", "soft", "empty_axes", "empty_modules", "empty_blocks"])
@pytest.mark.parametrize("how", ["mask", "ls"])
@pytest.mark.parametrize(
    "shape",
    [deeper(2), with_factors(deeper(2)), *(with_frontend(deeper(2), kind) for kind in OTHERS)],
    ids=["dense", "factored", *OTHERS],
)
def test_nothing_changes_where_the_reference_already_does_without_the_removed(kind, how, shape):
    model = small_model(shape=shape).double()
    mask = {name: z.double() for name, z in random_mask(model.axes(), kind).items()}
    choice = {name: z != 0 for name, z in mask.items()}
    features, num_frames = ragged_speech(480, 360, dtype=torch.float64)  # more than columns

    small = extract_and_reconstruct(model, mask, choice, how=how, speech=[(features, num_frames)])

    expected = extract(model, mask)(features, num_frames)
    actual = small(features, num_frames)
    real = expected.is_frame
    torch.testing.assert_close(  # but for the ridge
        actual.logits[real], expected.logits[real], rtol=5e-4, atol=5e-4
    )


def grams_of(*arguments):
    return {consumer.module: gram for consumer, gram in iterate_grams(*arguments)}


@pytest.mark.parametrize("kind", FRONTEND_SPECS)
def test_inputs_are_counted_at_real_frames_only(kind):
    model = small_model(shape=with_frontend(SHAPE, kind))
    folded = fold(named_tensors(model), model.axes(), {}, narrow_from=math.inf)
    consumers = [
        Consumer(axis=axis, piece=axis.slices[-1])
        for axis in model.axes()
        if axis.kind in ("frontend", "inner")
    ]
    features, num_frames = ragged_speech(90, 40)

    quiet = grams_of(model, folded, consumers, [(features, num_frames)])
    features[1, 40:] = 50.0
    loud = grams_of(model, folded, consumers, [(features, num_frames)])

    real = model.frontend.output_frames(num_frames).sum()
    assert quiet["blocks.0.ff1.down"][-1, -1] == real
    for number in range(2, 1 + model.shape.frontend_spec.stages):
        inside = [name for name in quiet if name.startswith(f"frontend.conv{number}")]
        products = [model.shape.frontend_spec.stage_frames(n)[number - 1] for n in (90, 40, 80)]
        assert [quiet[name][-1, -1] for name in inside] == [sum(products[:2]) * products[2]]
    for name, gram in quiet.items():
        torch.testing.assert_close(loud[name], gram, rtol=1e-4, atol=1e-4)


def test_statistics_become_those_of_the_speech_they_are_estimated_on():
    model = small_model().double()
    speech = [ragged_speech(120, 90, dtype=torch.float64)]

    reestimate_statistics(model, speech)

    evaluated = model(*speech[0])
    model.train()
    trained = model(*speech[0])
    real = evaluated.is_frame
    # Running variance is unbiased, the batch's is not: 49 frames make 1 % of difference.
    torch.testing.assert_close(evaluated.logits[real], trained.logits[real], rtol=0.1, atol=0.1)
    assert all(not m.training for m in small_model().modules())


def test_statistics_are_the_plain_mean_over_batches():
    speech = [ragged_speech(120, seed=1), ragged_speech(120, seed=2)]
    models = [small_model() for _ in range(3)]

    reestimate_statistics(models[0], speech[:1])
    reestimate_statistics(models[1], speech[1:])
    reestimate_statistics(models[2], speech)

    first, second, both = (m.blocks[0].convolution.batch_norm.running_mean for m in models)
    torch.testing.assert_close(both, (first + second) / 2)


def test_a_choice_is_extracted_as_it_is_where_nothing_is_to_be_repaired():
    model = small_model()
    choice = {name: z != 0 for name, z in random_mask(model.axes(), "binary").items()}

    small = extract_and_reconstruct(model, {}, choice, how="none", speech=())

    for name, tensor in extract(model, as_mask(choice)).state_dict().items():
        assert torch.equal(small.state_dict()[name], tensor)


def test_a_reference_under_gates_is_repaired_towards_with_statistics_of_its_own():
    model = small_model(shape=deeper(2)).double()
    mask = {name: z.double() for name, z in random_mask(model.axes(), "soft").items()}
    choice = {name: z > 0.3 for name, z in mask.items()}
    choice["width"], choice["frontend.sub1"] = mask["width"] > 0, mask["frontend.sub1"] > 0
    speech = [ragged_speech(240, 180, dtype=torch.float64)]
    stale = small_model(shape=deeper(2)).double()
    for name, buffer in stale.named_buffers():
        if "running" in name:
            buffer.mul_(30)

    fresh = extract_and_reconstruct(model, mask, choice, how="ls", speech=speech)
    mended = extract_and_reconstruct(stale, mask, choice, how="ls", speech=speech)

    for name, tensor in fresh.state_dict().items():
        torch.testing.assert_close(mended.state_dict()[name], tensor)
