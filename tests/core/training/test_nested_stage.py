"""Sizes that share weights: which are nested, what a step of them trains, and what it costs."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config.pruning import PruningConfig
from core.config.trial import TrialConfig
from core.conformer.masking import fold, gated_forward, named_tensors
from core.evaluation.evaluator import Evaluator
from core.pruning.extraction import as_mask, clone
from core.pruning.selection import ROUNDING, Budget, choose
from core.pruning.space import Space, resource_cost
from core.testing import noise_with_tokens, ragged_speech, random_mask, small_model
from core.training.distillation import Distillation
from core.training.gate_stage import masked_losses
from core.training.method import MethodContext
from core.training.nested_stage import Nested, absorb, nested_scores

CPU = torch.device("cpu")
SPACE = Space.of(small_model(), PruningConfig().axes, 4.0)


def filled(scores, target, space=SPACE):
    return choose(space, scores, Budget(keep=1 - target, resource="flops"), is_filled=True)


def drawn_scores(seed, scale=1.0):
    chance = torch.Generator().manual_seed(seed)
    return {a.name: scale * torch.randn(a.size, generator=chance) for a in SPACE.prunable}


def a_context(**sections) -> MethodContext:
    teacher = small_model()
    config = TrialConfig.parse(sections)
    student = clone(teacher).requires_grad_()
    return MethodContext(
        config=config,
        student=student,
        distillation=Distillation(clone(teacher), config.distillation),
        space=SPACE,
        speech=[ragged_speech(90, 60)],
        labeled=[noise_with_tokens()],
        choose=filled,
        evaluator=Evaluator(config, SPACE, None, CPU),
        device=CPU,
    )


def sizes(*targets):
    scores = nested_scores(drawn_scores(0), targets, filled)
    return [filled(scores, target) for target in sorted(targets)]


@pytest.mark.long
@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    targets=st.lists(st.floats(0.0, 0.75), min_size=1, max_size=5),
)
def test_every_size_holds_all_smaller_ones_and_leaves_no_room_for_another_unit(
    seed, scale, targets
):
    scores = nested_scores(drawn_scores(seed, scale), targets, filled)

    choices = [filled(scores, target) for target in sorted(targets)]

    for larger, smaller in pairwise(choices):
        assert all((larger[name] | ~kept).all() for name, kept in smaller.items())
    for target, choice in zip(sorted(targets), choices, strict=True):
        limit = (1 - target + ROUNDING) * resource_cost(SPACE.unpruned, "flops")
        assert SPACE.choice_cost(choice).flops <= limit
        for axis in SPACE.units:
            if (axis.parent and not choice[axis.parent].any()) or choice[axis.name].all():
                continue
            one_more = choice[axis.name].clone()
            one_more[int((~one_more).nonzero()[0])] = True
            assert SPACE.choice_cost({**choice, axis.name: one_more}).flops > limit


def test_the_smallest_size_is_the_one_that_the_scores_give_alone():
    scores = drawn_scores(0)

    lifted = nested_scores(scores, [0.3, 0.5, 0.7], filled)

    alone, within = filled(scores, 0.7), filled(lifted, 0.7)
    assert all(torch.equal(alone[name], within[name]) for name in alone)


@pytest.mark.parametrize("kind", ["open", "soft"])
def test_weights_that_have_absorbed_gates_compute_what_the_gates_let_through(kind):
    model = small_model()
    mask = random_mask(model.axes(), kind)
    mask = {name: torch.where(z == 0, torch.ones_like(z), z) for name, z in mask.items()}
    features, num_frames = ragged_speech(90, 60)
    with torch.no_grad():
        folded = fold(named_tensors(model), model.axes(), mask)
        wanted = gated_forward(model, features, num_frames, folded)

    absorb(model, mask, SPACE.open_choice())

    found = model(features, num_frames)
    torch.testing.assert_close(found.logits[found.is_frame], wanted.logits[wanted.is_frame])


def test_a_gate_that_is_shut_leaves_its_unit_as_it_was():
    model = small_model()
    before = model.blocks[0].ff1.down.weight.detach().clone()
    shut = torch.ones(12).index_fill(0, torch.tensor([3, 7]), 0.0)

    absorb(model, {"blocks.0.ff1.inner": shut}, SPACE.open_choice())

    torch.testing.assert_close(model.blocks[0].ff1.down.weight, before)


@pytest.mark.parametrize("parts", [1, 3])
def test_a_step_leaves_the_gradient_of_the_mean_over_its_sizes(parts):
    """In parts of one utterance, where batch norm sees the same frames however it is called."""
    ctx = a_context(training={"micro_batches": parts, "clip": 1e6})
    choices, batch = sizes(0.3, 0.6), noise_with_tokens()
    nested = Nested(ctx, choices, steps=10)
    nested.primal = torch.optim.SGD(nested.primal.param_groups[0]["params"], lr=0.0)
    ctx.student.train()
    total = sum(
        len(part.ids) / len(batch.ids) * masked_losses(ctx, as_mask(choice), part)["total"] / 2
        for part in batch.parts(parts)
        for choice in choices
    )
    wanted = dict(
        zip(
            (name for name, _ in ctx.student.named_parameters()),
            torch.autograd.grad(total, list(ctx.student.parameters()), materialize_grads=True),
            strict=True,
        )
    )

    told = nested.step(batch, 0)

    torch.testing.assert_close(told["total"], total.detach())
    for name, parameter in ctx.student.named_parameters():
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found, wanted[name], atol=1e-5, rtol=1e-4)


def test_the_teacher_hears_a_batch_once_however_many_sizes_learn_from_it():
    ctx = a_context()
    nested = Nested(ctx, sizes(0.2, 0.4, 0.6), steps=10)
    heard = []
    ctx.distillation.teacher.register_forward_hook(lambda *_: heard.append(1))

    nested.step(noise_with_tokens(), 0)

    assert len(heard) == 1


@pytest.mark.parametrize(("drawn", "count"), [(0, 2), (1, 3), (2, 4), (9, 5)])
def test_a_step_trains_the_largest_the_smallest_and_some_between(drawn, count):
    ctx = a_context()
    nested = Nested(ctx, sizes(0.2, 0.3, 0.4, 0.5, 0.6), steps=10, drawn_sizes=drawn)

    numbered = {id(mask): number for number, mask in enumerate(nested.masks)}
    draws = [[numbered[id(mask)] for mask in nested._sample_masks()] for _ in range(20)]

    for numbers in draws:
        assert numbers == sorted(set(numbers))
        assert len(numbers) == count
        assert {0, 4} <= set(numbers)
    if 0 < drawn < 3:
        assert {number for numbers in draws for number in numbers} == {0, 1, 2, 3, 4}


def test_one_size_alone_is_trained_alone():
    nested = Nested(a_context(), sizes(0.5), steps=10)

    assert len(nested._sample_masks()) == 1
    assert torch.isfinite(nested.step(noise_with_tokens(), 0)["total"])


def test_units_of_no_size_get_no_gradient():
    ctx = a_context()
    choices = sizes(0.4, 0.6)
    nested = Nested(ctx, choices, steps=10)

    nested.step(noise_with_tokens(), 0)

    gone = ~choices[0]["blocks.0.ff1.inner"]
    assert gone.any()
    gradient = ctx.student.blocks[0].ff1.down.weight.grad
    assert gradient is None or not gradient[:, gone].any()


def test_without_teaching_terms_only_the_transcripts_are_learned_from():
    ctx = a_context(distillation={"logit_weight": 0.0, "layer_weight": 0.0})

    told = Nested(ctx, sizes(0.3, 0.6), steps=10).step(noise_with_tokens(), 0)

    assert set(told) == {"total", "task"}


def test_sizes_put_away_and_taken_up_again_take_the_same_steps():
    def stepped(nested, steps):
        return [float(nested.step(noise_with_tokens(seed=step), step)["total"]) for step in steps]

    choices = sizes(0.2, 0.4, 0.6)
    torch.manual_seed(1)
    whole = Nested(a_context(), choices, steps=6, drawn_sizes=1)
    wanted = stepped(whole, range(6))
    torch.manual_seed(1)
    first = Nested(a_context(), choices, steps=6, drawn_sizes=1)
    begun = stepped(first, range(3))
    again = Nested(a_context(), choices, steps=6, drawn_sizes=1)
    again.restore(first.state())

    assert begun + stepped(again, range(3, 6)) == wanted
