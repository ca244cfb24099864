"""What ACIP says of units: one descent, in which the order of all sizes is found."""

from itertools import pairwise
from typing import get_args

import pytest
import torch

from core.config.pruning import AxisKind
from core.config.trial import TrialConfig
from core.conformer.masking import named_tensors
from core.evaluation.evaluator import Evaluator
from core.methods.acip import METHOD, prices
from core.pruning.extraction import clone
from core.pruning.selection import Budget, choose
from core.pruning.space import Space
from core.testing import noise_with_tokens, ragged_speech, small_model
from core.training.distillation import Distillation
from core.training.method import MethodContext

CPU = torch.device("cpu")


def a_context(model, own=None, **pruning) -> MethodContext:
    config = TrialConfig.parse({"pruning": {"method": "acip", "acip": own or {}, **pruning}})
    student = METHOD.prepare_model(clone(model), config, [])
    space = Space.of(clone(student), get_args(AxisKind), 4.0, unpruned=model)
    return MethodContext(
        config=config,
        student=student,
        distillation=Distillation(clone(model), config.distillation),
        space=space,
        speech=[ragged_speech(90, 60)],
        labeled=[noise_with_tokens()],
        choose=lambda scores, target: chosen(space, scores, 1 - target),
        evaluator=Evaluator(config, space, None, CPU),
        device=CPU,
    )


def chosen(space, scores, keep):
    return choose(space, scores, Budget(keep=keep, resource="flops"))


def searched(ctx):
    search = METHOD.stage(ctx)
    for step in range(search.steps):
        losses = search.step(noise_with_tokens(), step)
    return search, losses


@pytest.mark.slow
def test_one_descent_orders_all_sizes_and_stops_at_the_smallest():
    ctx = a_context(small_model(), {"smallest": 0.5}, steps=40)

    search, losses = searched(ctx)

    assert losses["kept"] <= 0.5
    assert search.gates.is_frozen
    scores = search.search_result().scores
    keeps = (0.9, 0.7, 0.5, 0.3)
    choices = [chosen(ctx.space, scores, keep) for keep in keeps]
    for keep, choice in zip(keeps, choices, strict=True):
        cost = ctx.space.choice_cost(choice)
        assert 0.6 * keep < cost.flops / ctx.space.unpruned.flops <= keep
    for larger, smaller in pairwise(choices):
        assert all((larger[name] | ~kept).all() for name, kept in smaller.items())


def test_no_unit_dies_before_a_mask_has_had_the_time_to_fall():
    search = METHOD.stage(a_context(small_model(), steps=80))

    for step in range(13):
        search.step(noise_with_tokens(), step)

    assert (search.gates.mask > 0).all()


def test_without_rank_among_the_axes_nothing_is_factored():
    model = small_model()
    config = TrialConfig.parse({"pruning": {"method": "acip", "axes": ["inner", "head"]}})

    assert METHOD.prepare_model(model, config, []).shape == model.shape


@pytest.mark.parametrize("resource", ["flops", "params"])
def test_a_unit_is_priced_at_what_its_axis_saves(resource):
    ctx = a_context(small_model(), resource=resource)

    found = prices(ctx)

    whole = getattr(ctx.space.unpruned, resource)
    up = ctx.student.blocks[0].ff1.up  # 16 inputs, 12 outputs, 12 directions
    of_layer = 16 * 12 * (2 * 99 if resource == "flops" else 1)
    assert up.reduce.weight.shape == (12, 16)
    assert found["blocks.0.ff1.up.rank"] == pytest.approx(of_layer / 12 / whole)


@pytest.mark.long
@pytest.mark.slow
def test_large_directions_that_do_nothing_die_before_small_ones_that_do():
    model = small_model()
    part = model.blocks[0].ff1
    with torch.no_grad():  # the first half of the inner units is loud, but nobody listens
        part.up.weight[:6] *= 20
        part.up.weight[:6, 8:] = 0
        part.up.weight[6:, :8] = 0
        part.down.weight[:, :6] = 0
        part.down.weight[:, 6:] *= 4
    own = {"smallest": 0.5, "learning_rate": 1e-8}
    ctx = a_context(model, own, steps=60, axes=["rank"])
    heard = named_tensors(ctx.student)["blocks.0.ff1.up.expand.weight"][6:].square().sum(0)

    search, _ = searched(ctx)

    worth = search.search_result().scores["blocks.0.ff1.up.rank"]
    idle = heard < heard.max() / 1e6
    assert idle.tolist() == [True] * 6 + [False] * 6
    assert worth[idle].mean() < worth[~idle].mean()
