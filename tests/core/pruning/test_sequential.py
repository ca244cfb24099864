"""Sequential reconstruction brings a pruned model's residual stream back to the whole one's."""

import pytest
import torch

from core.pruning.extraction import clone
from core.pruning.least_squares import LeastSquares
from core.pruning.reconstruction import extract_and_reconstruct
from core.pruning.space import Space
from core.testing import (
    SHAPE,
    TRANSDUCERS,
    ragged_speech,
    random_mask,
    small_model,
    with_transducer,
)

AXES = ["frontend", "width", "head", "inner", "channel", "module"]


@pytest.fixture
def speech():
    return [ragged_speech(200, 160, 90, seed=seed) for seed in range(4)]


def shifted_model(speech, shape=SHAPE):
    """A model whose batch norms have seen this speech, and whose biases are not zero."""
    model = small_model(shape=shape)
    model.train()
    with torch.no_grad():
        for features, num_frames in speech:
            model(features, num_frames)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def output_error(small, whole, speech):
    """Squared distance of the logits over real frames."""
    total = 0.0
    with torch.no_grad():
        for features, num_frames in speech:
            expected, actual = whole(features, num_frames), small(features, num_frames)
            gap = (expected.logits - actual.logits)[expected.is_frame]
            total += float(gap.square().sum())
    return total


def test_an_unpruned_model_stays_as_it_is(speech):
    model = shifted_model(speech)
    choice = Space.of(model, AXES, 4.0).open_choice()

    small = extract_and_reconstruct(clone(model), {}, choice, how="sequential", speech=speech)

    for features, num_frames in speech:
        a, b = model(features, num_frames), small(features, num_frames)
        assert torch.allclose(a.logits[a.is_frame], b.logits[b.is_frame], atol=1e-6)


@pytest.mark.parametrize("kind", ["binary", "empty_axes", "empty_modules", "empty_blocks"])
@pytest.mark.parametrize("seed", range(2))
def test_the_output_comes_nearer_than_by_least_squares_alone(speech, kind, seed):
    model = shifted_model(speech)
    space = Space.of(model, AXES, 4.0)
    mask = random_mask(model.axes(), kind, seed)
    choice = {name: values > 0 for name, values in mask.items()}

    errors = [
        output_error(
            extract_and_reconstruct(clone(model), {}, choice, how=how, speech=speech),
            model,
            speech,
        )
        for how in ("none", "ls", "sequential")
    ]

    assert space.choice_cost(choice).flops < space.unpruned.flops
    assert errors[2] < errors[1]
    assert errors[2] < errors[0]


def test_padding_changes_nothing(speech):
    model = shifted_model(speech)
    choice = {n: v > 0 for n, v in random_mask(model.axes(), "binary", 1).items()}
    padded = [(torch.nn.functional.pad(f, (0, 0, 0, 40)), n) for f, n in speech]

    small = extract_and_reconstruct(clone(model), {}, choice, how="sequential", speech=speech)
    other = extract_and_reconstruct(clone(model), {}, choice, how="sequential", speech=padded)

    for a, b in zip(small.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_readers_give_what_those_of_the_whole_model_give(speech):
    """Without half of the width, `up` and its like are refitted to the stream that is left.

    On the calibration speech, least squares is never further off than what was there before.
    """
    model = shifted_model(speech)
    choice = {name: torch.ones(axis.size).bool() for axis in model.axes() for name in [axis.name]}
    choice["width"][::2] = False
    before = extract_and_reconstruct(clone(model), {}, choice, how="none", speech=speech)
    after = extract_and_reconstruct(clone(model), {}, choice, how="sequential", speech=speech)

    errors = {"before": 0.0, "after": 0.0}
    for features, num_frames in speech:
        wanted = first_activations(model, features, num_frames)
        errors["before"] += float((first_activations(before, features, num_frames) - wanted).norm())
        errors["after"] += float((first_activations(after, features, num_frames) - wanted).norm())
    assert errors["after"] < 0.9 * errors["before"]


@torch.no_grad()
def first_activations(model, features, num_frames):
    """What the first feed-forward reads, behind its first layer, over real frames."""
    caught = []
    up = model.blocks[0].ff1.up
    handle = up.register_forward_hook(lambda _module, _inputs, output: caught.append(output))
    is_frame = model(features, num_frames).is_frame
    handle.remove()
    return caught[0][is_frame]


@torch.no_grad()
def place_error(small, whole, speech):
    """Squared distance of a transducer's log-probabilities where the unpruned model searches."""
    total = 0.0
    for features, num_frames in speech:
        places = whole.best_places(features, num_frames)
        expected, actual = (m(features, num_frames, places=places) for m in (whole, small))
        total += float((expected.at_places - actual.at_places).square().sum())
    return total


@pytest.mark.parametrize("kind", TRANSDUCERS)
def test_a_transducer_s_predictor_and_joint_are_made_up_for(speech, kind):
    """Half of each axis of its own goes, and nothing of the encoder."""
    speech = speech[:1]
    model = shifted_model(speech, with_transducer(SHAPE, kind))
    whole = {axis.name: torch.ones(axis.size).bool() for axis in model.axes()}
    halved = {
        name: torch.arange(len(units)) % 2 == 0 if name.startswith("transducer.") else units
        for name, units in whole.items()
    }

    unpruned, plain, repaired = (
        extract_and_reconstruct(clone(model), {}, choice, how=how, speech=speech)
        for choice, how in ((whole, "sequential"), (halved, "none"), (halved, "sequential"))
    )

    assert place_error(unpruned, model, speech) < 1e-8
    assert place_error(repaired, model, speech) < 0.5 * place_error(plain, model, speech)


@pytest.mark.parametrize("kind", ["binary", "empty_modules"])
def test_no_refit_adds_to_the_error_of_its_layer(speech, kind, monkeypatch):
    """Layer by layer, on the calibration speech, whatever the layers before have become.

    With G the sum of x x^T and C that of (target - output) x^T, a change D of a layer adds
    tr(D G D^T) - 2 tr(C D^T) to the squared error.
    """
    model = shifted_model(speech)
    choice = {n: v > 0 for n, v in random_mask(model.axes(), kind, 0).items()}
    solve, added = LeastSquares.solve, []

    def solve_and_compare(fit):
        fit._sum(least=1)
        before, gram, cross = columns(fit.layer), fit._gram.clone(), fit._cross.clone()
        solve(fit)
        change = columns(fit.layer) - before
        added.append(float((change @ gram * change).sum() - 2 * (cross * change).sum()))

    monkeypatch.setattr(LeastSquares, "solve", solve_and_compare)
    extract_and_reconstruct(clone(model), {}, choice, how="sequential", speech=speech)

    assert len(added) > 8
    assert max(added) <= 1e-6
    assert min(added) < -1e-3


def columns(layer):
    weight, bias = layer.weight.detach().double(), layer.bias
    return weight if bias is None else torch.cat((weight, bias.detach().double()[:, None]), 1)
