"""What a family says of its sizes: they are nested, and one run makes all of them good."""

import io
import statistics

import pytest
import torch

from core.config.trial import TrialConfig
from core.decoders.ctc import ctc_loss
from core.methods.family import METHOD, FamilyStage, ordering
from core.pruning.extraction import as_mask, extract
from core.pruning.reconstruction import reestimate_statistics
from core.testing import make_patterned_speech, run_method

pytestmark = pytest.mark.whole

SIZES = (0.3, 0.5, 0.7)


def test_the_order_is_sought_for_the_smallest_size_in_its_share_of_the_search(context_of):
    ctx = context_of("family", target_sparsity=0.3, order_share=0.5)

    order = ordering(ctx, target=0.8)

    assert (order.steps, order.ctx.target) == (12, 0.8)
    assert ctx.target == 0.3


def test_other_resources_move_with_the_smallest_size(context_of):
    ctx = context_of("family", target_sparsity=0.4, also={"params": 0.2})

    order = ordering(ctx, target=0.7)

    assert order.ctx.config.pruning.targets == pytest.approx({"flops": 0.7, "params": 0.6})


def test_each_target_is_an_outcome():
    pruning = {"method": "family", "target_sparsity": 0.3, "further_targets": [0.5, 0.7]}

    assert METHOD.targets(TrialConfig.parse({"pruning": pruning})) == SIZES


@pytest.mark.parametrize(("steps", "how"), [(10, "none"), (0, "ls")])
def test_what_learned_as_one_of_the_sizes_is_not_repaired(steps, how):
    config = TrialConfig.parse({"pruning": {"method": "family", "steps": steps, "repair": "ls"}})

    assert METHOD.repair(config) == how


def test_without_a_search_the_order_is_that_of_numerical(context_of):
    ctx, other = context_of("family", steps=0), context_of("numerical", steps=0)

    found, wanted = run_method(ctx).scores, run_method(other).scores

    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_one_step_is_enough_to_find_an_order(context_of):
    ctx = context_of("family", steps=1)

    choice = ctx.choose(run_method(ctx).scores, 0.5)

    assert ctx.space.sparsity(ctx.space.choice_cost(choice), "flops") >= 0.5


@pytest.mark.long
@pytest.mark.slow
def test_sizes_that_learned_together_are_better_than_cuts_of_one_that_learned_alone(context_of):
    """At equal steps: in the mean over what nobody trained for, without repair or tuning."""
    together = context_of(
        "family", steps=40, target_sparsity=SIZES[0], further_targets=list(SIZES[1:])
    )
    alone = context_of("family", steps=40, target_sparsity=SIZES[0])

    losses = [
        [loss_of(ctx, found, size) for size in SIZES[1:]]
        for ctx, found in ((together, run_method(together)), (alone, run_method(alone)))
    ]

    assert statistics.mean(losses[0]) < statistics.mean(losses[1])


@pytest.mark.slow
@pytest.mark.parametrize("at", [3, 6, 9])
def test_a_stage_taken_up_again_takes_the_same_steps(context_of, at):
    """Before, at and after the step where gates end and sizes begin."""

    def begun():
        ctx = context_of("family", target_sparsity=0.3, further_targets=[0.5, 0.7], drawn_sizes=1)
        return FamilyStage(ctx, SIZES)

    def stepped(stage, steps):
        return [
            float(stage.step(make_patterned_speech(4, seed=step), step)["total"]) for step in steps
        ]

    first = begun()
    before = stepped(first, range(at))
    state, chance = first.state(), torch.get_rng_state()
    state = torch.load(saved(state), weights_only=True)
    after = stepped(first, range(at, 12))
    again = begun()
    again.restore(state)
    torch.set_rng_state(chance)

    assert first.steps == 24
    assert len(before) == at
    assert stepped(again, range(at, 12)) == after


def saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def loss_of(ctx, found, share):
    small = extract(ctx.student, as_mask(ctx.choose(found.scores, share)))
    reestimate_statistics(small, ctx.speech)
    batch = make_patterned_speech(32, seed=60)
    with torch.no_grad():
        output = small.eval()(batch.features, batch.num_frames)
    return float(ctc_loss(output, batch.tokens, batch.num_tokens))
