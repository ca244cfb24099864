"""Rounds of cuts by Fisher scores, with what is shut for good."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from core.conformer.masking import fold, gated_forward, named_tensors
from core.decoders.ctc import ctc_loss
from core.methods.cpd import METHOD, Rounds
from core.pruning.gate_gradients import fisher, split_utterances
from core.testing import make_patterned_speech, small_model

pytestmark = pytest.mark.whole

# Of the tests' patterns, those of the first tokens that the small model knows.
WORDS = 6
STEP = 1e-2  # CTC is computed in single precision


def a_loss(model):
    def loss(folded, batch):
        output = gated_forward(model, batch.features, batch.num_frames, folded)
        return ctc_loss(output, batch.tokens.clamp(max=WORDS), batch.num_tokens)

    return loss


def test_a_fisher_score_is_the_mean_over_utterances_of_the_slope_squared():
    model, batch = small_model().double(), make_patterned_speech(3, seed=0)
    batch = replace(batch, features=batch.features.double())
    axes = [axis for axis in model.axes() if axis.kind in ("inner", "head")]
    loss = a_loss(model)

    found = fisher(model, axes, [batch], loss)

    def value(axis, unit, gate, utterance):
        gates = torch.ones(axis.size).double()
        gates[unit] = gate
        with torch.no_grad():
            return loss(fold(named_tensors(model), model.axes(), {axis.name: gates}), utterance)

    for axis in axes[:3]:
        slopes = [
            (value(axis, 1, 1 + STEP, u) - value(axis, 1, 1 - STEP, u)) / (2 * STEP)
            for u in split_utterances([batch])
        ]
        wanted = torch.stack(slopes).double().square().mean()
        torch.testing.assert_close(found[axis.name][1], wanted, rtol=0.05, atol=1e-6)


@pytest.mark.slow
def test_rounds_take_equal_parts_and_what_is_shut_stays_shut(context_of):
    ctx = context_of("cpd", steps=9, rounds=3, target_sparsity=0.6)
    stage = Rounds(ctx)
    shut, removed = [], []
    for step in range(9):
        stage.step(make_patterned_speech(8, seed=step), step)
        mask = stage.closed.sample()
        if step % 3 == 0:
            choice = {**ctx.space.open_choice(), **{n: v > 0 for n, v in mask.items()}}
            removed.append(ctx.space.sparsity(ctx.space.choice_cost(choice), "flops"))
        shut.append(torch.cat([v == 0 for v in mask.values()]))

    assert removed == pytest.approx([0.2, 0.4, 0.6], abs=0.02)
    for earlier, later in pairwise(shut):
        assert bool((later | ~earlier).all())


@pytest.mark.slow
def test_its_order_names_first_what_was_shut_first(searched):
    ctx, found = searched("cpd")

    choice = ctx.choose(found.scores, ctx.target)

    kept = torch.cat([found.scores[name][choice[name]] for name in found.scores])
    gone = torch.cat([found.scores[name][~choice[name]] for name in found.scores])
    # All that stayed to the end is worth more than whatever went in a round before the last.
    assert kept.median() > gone.median()
    assert gone.min() < 1.0


@pytest.mark.slow
def test_without_steps_all_rounds_follow_each_other_up_to_the_target(context_of):
    ctx = context_of("cpd", steps=0, rounds=3, target_sparsity=0.6)

    scores = METHOD.search_result(ctx, METHOD.search(ctx)).scores

    choice = ctx.choose(scores, 0.6)
    assert ctx.space.sparsity(ctx.space.choice_cost(choice), "flops") >= 0.6
    # Whole numbers are rounds: 0.x closed in the first, and 2.x stayed open up to the last.
    rounds = {int(value) for values in scores.values() for value in values}
    assert rounds == {0, 1, 2}
