"""What every method promises, whatever it does; resuming is in tests/core/test_trial.py."""

import statistics
from itertools import pairwise

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from core.config.methods import method_names
from core.conformer.masking import fold, gated_forward, named_tensors
from core.decoders.ctc import ctc_loss
from core.pruning.extraction import as_mask, extract
from core.pruning.reconstruction import extract_and_reconstruct, reestimate_statistics
from core.pruning.selection import Budget, choose
from core.testing import make_patterned_speech, run_method, train_toy
from core.training.intermediate_ctc import InterCTC
from core.training.method import NeedError, load_method

METHODS = [name for name in method_names() if name != "dense"]
CURVES = [name for name in METHODS if load_method(name).yields == "curve"]
WITHOUT_WEIGHTS = ("random", "scratch")
"""One draws, the other forgets what it was given."""
WEAK = ("prunenet", "uniform")
"""They take the same share of every axis, front end and width too: reported, not promised."""
FOR_DEPTH = ("interctc",)
"""Without tuning they are of no use on any other teacher; see benchmarks/quality/depth.py."""

pytestmark = [pytest.mark.slow, pytest.mark.whole]


@pytest.mark.parametrize("method", METHODS)
def test_masked_computes_what_extracted_does(method, searched):
    ctx, found = searched(method)
    mask = as_mask(ctx.choose(found.scores, 0.6))
    batch, student = make_patterned_speech(4, seed=50), ctx.student.eval()

    with torch.no_grad():
        folded = fold(named_tensors(student), student.axes(), mask)
        masked = gated_forward(student, batch.features, batch.num_frames, folded)
        small = extract(student, mask).eval()(batch.features, batch.num_frames)

    torch.testing.assert_close(
        masked.logits[masked.is_frame], small.logits[small.is_frame], atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("method", METHODS)
def test_costs_are_what_is_counted_and_the_budget_is_met(method, searched):
    ctx, found = searched(method)
    choice = ctx.choose(found.scores, 0.6)
    small, cost = extract(ctx.student, as_mask(choice)).eval(), ctx.space.choice_cost(choice)

    assert sum(p.numel() for p in small.parameters()) == cost.params
    frames = 400
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        small(torch.zeros(1, frames, 80), torch.tensor([frames]))
    assert counter.get_total_flops() == cost.flops
    assert ctx.space.sparsity(cost, "flops") >= 0.6


@pytest.mark.parametrize("method", CURVES)
def test_one_order_serves_every_budget_and_choices_are_nested(method, searched):
    ctx, found = searched(method)

    choices = [
        choose(ctx.space, found.scores, Budget(keep=keep, resource="flops"))
        for keep in (0.7, 0.5, 0.3)
    ]

    for larger, smaller in pairwise(choices):
        assert all(bool((larger[name] | ~smaller[name]).all()) for name in larger)


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_says_it_needs_it_needs(method, context_of):
    plugin, ctx = load_method(method), context_of(method, linear_blocks=1)
    if plugin.search(ctx.restricted_to(plugin.needs)) is not None:
        return  # what trains is given all speech, with its words

    for need in plugin.needs:
        with pytest.raises(NeedError, match=need):
            touch(plugin, ctx.restricted_to(plugin.needs - {need}))


def touch(plugin, ctx):
    plugin.prepare_model(ctx.student, ctx.config, ctx.speech)
    plugin.search_result(ctx, None)


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_makes_the_same_choice(method, searched, searched_anew):
    (ctx, first), (_, second) = searched(method), searched_anew(method)
    one, other = (ctx.choose(found.scores, 0.6) for found in (first, second))

    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.long
@pytest.mark.parametrize("method", sorted({*METHODS} - {*WITHOUT_WEIGHTS, *WEAK, *FOR_DEPTH}))
def test_a_method_beats_chance_at_equal_flops_and_repair(method, searched):
    def mean(name):
        return statistics.mean(loss_of(*searched(name, seed), 0.6) for seed in range(3))

    assert mean(method) < mean("random")


@pytest.mark.long
@pytest.mark.parametrize("method", FOR_DEPTH)
def test_a_method_for_depth_beats_chance_on_a_teacher_that_was_trained_for_it(method, context_of):
    teacher = train_toy(interctc=InterCTC(weight=0.5, layers=(1,)))

    def mean(name):
        benches = [context_of(name, seed=seed, model=teacher) for seed in range(3)]
        return statistics.mean(loss_of(ctx, run_method(ctx), 0.45) for ctx in benches)

    assert mean(method) < mean("random")


def loss_of(ctx, found, share):
    """CTC of what is left when such a share of FLOPs is gone: repaired, not tuned."""
    choice = ctx.choose(found.scores, share)
    small = extract_and_reconstruct(
        ctx.student, found.reference, choice, how="ls", speech=ctx.speech
    )
    reestimate_statistics(small, ctx.speech)
    batch = make_patterned_speech(32, seed=60)
    with torch.no_grad():
        output = small.eval()(batch.features, batch.num_frames)
    return float(ctc_loss(output, batch.tokens, batch.num_tokens))
