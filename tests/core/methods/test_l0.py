"""How the gates of `l0` start, hear, and travel; what it finds stands in test_methods.py."""

from itertools import pairwise

import pytest
import torch

from core.config.base import ConfigError
from core.methods.l0 import METHOD as L0
from core.methods.l0 import Settings
from core.pruning.gates.hard_concrete import COLDEST, KINDS
from core.testing import make_patterned_speech
from core.training.gate_stage import expected_sparsities, expected_sparsity
from core.training.hard_concrete_stage import ConcreteStage
from core.training.method import load_method

pytestmark = pytest.mark.whole


class Pull:
    """A restraint that pulls every log_alpha down alike, or not at all."""

    optimizers = ()

    def __init__(self, strength):
        self._strength = strength

    def penalty(self, expected, step):
        del step
        return self._strength * torch.cat([p.logit() for p in expected.values()]).sum(), {}

    def post_step(self): ...

    def state_dict(self):
        return {}

    def load_state_dict(self, state): ...


def log_alphas(stage):
    return stage.gates.scores()


@pytest.mark.parametrize("scorer", ["magnitude", "numerical", "random"])
def test_gates_start_in_the_order_of_another_methods_scores(scorer, context_of):
    ctx = context_of("l0", start_from=scorer, start_spread=1.5, log_alpha=2.0)
    method = load_method(scorer)
    scores = method.search_result(ctx.restricted_to(method.needs), None).scores

    started = log_alphas(L0.stage(ctx))

    for axis in ctx.space.units:
        if axis.name not in scores:
            continue
        values = started[axis.name]
        assert torch.equal(values.argsort(), scores[axis.name].argsort(stable=True)), axis.name
        middle = (
            2.0 if axis.kind != "width" else ctx.config.pruning.settings(Settings).module_log_alpha
        )
        ends = (values.min().item(), values.max().item())
        assert ends == pytest.approx((middle - 1.5, middle + 1.5), abs=1e-5)


def test_gates_without_a_score_start_as_ever(context_of):
    ordered = log_alphas(L0.stage(context_of("l0", start_from="magnitude")))
    alike = log_alphas(L0.stage(context_of("l0")))

    modules = [a.name for a in context_of("l0").space.prunable if a.is_whole]
    assert modules
    assert all(torch.equal(ordered[name], alike[name]) for name in modules)


@pytest.mark.parametrize("name", ["l0", "acip", "cpd", "dense", "interctc", "performer"])
def test_a_start_from_a_method_that_cannot_score_at_once_is_refused_by_name(name, context_of):
    with pytest.raises(ConfigError, match=rf"one of .*magnitude.*, but is `{name}` instead"):
        L0.stage(context_of("l0", start_from=name))


@pytest.mark.parametrize("settling", [0.0, 0.5])
@pytest.mark.parametrize("steps", [6, 24])
def test_gates_travel_as_far_in_runs_of_any_length(steps, settling, context_of):
    ctx = context_of("l0", steps=steps, gate_travel=2.0, gate_lr=5.0)
    stage = ConcreteStage(ctx, Pull(1e6), settling=settling)
    before = log_alphas(stage)

    for step in range(steps):
        stage.step(make_patterned_speech(2, seed=step), step)

    for name, after in log_alphas(stage).items():
        torch.testing.assert_close(
            before[name] - after, torch.full_like(after, 2.0), rtol=0.02, atol=0
        )


def test_straight_through_gates_hear_while_they_are_shut(context_of):
    ctx = context_of("l0", gates="straight_through", log_alpha=0.0)
    stage = ConcreteStage(ctx, Pull(0.0))
    torch.manual_seed(0)
    drawn = stage.gates.sample()
    torch.manual_seed(0)

    stage.step(make_patterned_speech(4, seed=0), 0)

    gradients = stage.concrete.log_alpha.grad.split(stage.concrete.sizes)
    heard = dict(zip(stage.concrete.names, gradients, strict=True))
    inner = [axis.name for axis in ctx.space.prunable if axis.kind == "inner"]
    for name in inner:
        shut = drawn[name] == 0
        assert shut.float().mean() > 0.125, "so many that others would be left out"
        assert heard[name][shut].any(), name


@pytest.mark.parametrize("steps", [2, 5])
def test_a_search_ends_with_gates_at_their_coldest_however_long_it_is(steps, context_of):
    stage = L0.stage(context_of("l0", steps=steps, gates="annealed"))
    temperatures = [stage.gates.temperature]

    for step in range(steps):
        stage.step(make_patterned_speech(2, seed=step), step)
        temperatures.append(stage.gates.temperature)

    assert temperatures[0] == temperatures[1]
    assert temperatures[-1] == pytest.approx(COLDEST)
    assert temperatures == sorted(temperatures, reverse=True)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("start_from", ["", "magnitude"])
@pytest.mark.parametrize("kind", KINDS)
def test_gates_of_every_kind_and_start_reach_the_target(kind, start_from, context_of):
    pruning = {"gates": kind, "start_from": start_from, "gate_travel": 25.0}
    ctx = context_of("l0", steps=100, target_sparsity=0.6, **pruning)
    stage = L0.stage(ctx)

    for step in range(stage.steps):
        stage.step(make_patterned_speech(8, seed=step), step)

    expected = float(expected_sparsity(ctx, stage.gates.open_probability()).detach())
    assert expected == pytest.approx(0.6, abs=0.05)
    cost = ctx.space.choice_cost(ctx.choose(stage.search_result().scores, 0.6))
    assert ctx.space.sparsity(cost, "flops") >= 0.6


@pytest.mark.long
@pytest.mark.slow
def test_a_search_in_rounds_shuts_units_for_good_and_reaches_the_target(context_of):
    ctx = context_of("l0", steps=120, target_sparsity=0.8, gate_travel=60.0, shrink_rounds=3)
    stage = L0.stage(ctx)
    living = []

    for step in range(stage.steps):
        stage.step(make_patterned_speech(8, seed=step), step)
        living.append(stage.gates.active.clone())

    counts = [int(alive.sum()) for alive in living]
    assert len(set(counts)) == 3
    assert counts == sorted(counts, reverse=True)
    assert all(not alive[before == 0].any() for before, alive in pairwise(living))
    expected = float(expected_sparsity(ctx, stage.gates.open_probability()).detach())
    assert expected == pytest.approx(0.8, abs=0.05)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("also", [0.05, 0.3])
def test_a_further_target_that_is_met_anyway_pulls_nothing_back(also, context_of):
    ctx = context_of("l0", steps=100, target_sparsity=0.6, gate_travel=25.0, also={"params": also})
    stage = L0.stage(ctx)

    for step in range(stage.steps):
        stage.step(make_patterned_speech(8, seed=step), step)

    sparsities = expected_sparsities(ctx, stage.gates.open_probability())
    assert float(sparsities["flops"].detach()) == pytest.approx(0.6, abs=0.05)
    assert float(sparsities["params"].detach()) > also
