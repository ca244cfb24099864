"""Blocks and units that do least go first, side by side in their shares."""

import pytest
import torch
from scipy.stats import spearmanr

from core.decoders.ctc import ctc_loss
from core.methods.comp import block_influence, contributions, merge_orders
from core.pruning.extraction import as_mask, extract
from core.pruning.scoring import consumer_inputs
from core.pruning.space import unit_share
from core.testing import deeper, make_patterned_speech, small_model


def test_a_contribution_is_the_share_of_a_units_own_product(context_of):
    ctx = context_of("comp", model=small_model())
    taken = consumer_inputs(ctx.student, ctx.space, ctx.speech)
    intake = next(each for each in taken if each.axis.kind == "head")
    weight = intake.weight

    found = contributions(intake)

    # X has the gram's Cholesky factor as one of its square roots.
    inputs = torch.linalg.cholesky(intake.gram + 1e-9 * torch.eye(len(intake.gram))).T
    parts = [
        inputs[:, part] @ weight[:, part].T
        for part in torch.arange(weight.shape[1]).chunk(intake.axis.size)
    ]
    wanted = torch.stack([part.norm() / torch.stack(parts).sum(0).norm() for part in parts])
    torch.testing.assert_close(found, wanted.detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_the_blocks_that_turn_least_are_the_least_missed(context_of, toy):
    ctx = context_of("comp", axes=["block"])
    batch = make_patterned_speech(32, seed=60)

    def missed(block):
        choice = ctx.space.open_choice()
        for name in choice:
            if name == block or name.startswith(f"{block}."):
                choice[name] = torch.zeros_like(choice[name])
        with torch.no_grad():
            output = extract(toy, as_mask(choice)).eval()(batch.features, batch.num_frames)
        return float(ctc_loss(output, batch.tokens, batch.num_tokens))

    influence = block_influence(toy, ctx.speech)

    losses = [missed(block.name) for block in toy.typed_blocks()]
    assert spearmanr(influence, losses).statistic > 0


def test_a_block_that_does_nothing_has_no_influence():
    model = small_model(shape=deeper(3))
    with torch.no_grad():
        for part in model.blocks[1].parts():
            output = part.output if part.name.endswith("attention") else part.down
            output.weight.zero_()
            output.bias.zero_()
        for block in model.blocks[:2]:  # norm after norm is the norm
            block.norm.weight.fill_(1.0)
            block.norm.bias.zero_()
    batch = make_patterned_speech(3, seed=0)

    influence = block_influence(model, [(batch.features, batch.num_frames)])

    assert influence[1] == pytest.approx(0, abs=1e-5)
    assert influence[[0, 2]].min() > 1e-3


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_blocks_make_up_their_share_of_what_is_gone(share, context_of):
    ctx = context_of("comp", coarse_share=share)
    fine = {axis.name: torch.arange(axis.size).double() for axis in ctx.space.units}

    scores = merge_orders(ctx, fine, torch.tensor([0.3, 0.1, 0.2]).double())

    costs = {name: unit_share(ctx.space, name, "flops") for name in scores}
    places = sorted((float(p), name) for name, values in scores.items() for p in values)
    assert [place for place, _ in places[:1]] == [1.0]
    coarse = total = 0.0
    by_place: dict[float, list[str]] = {}
    for place, name in places:
        by_place.setdefault(place, []).append(name)
    largest = max(sum(costs[n] for n in names) for names in by_place.values())
    for names in by_place.values():
        cost = sum(costs[name] for name in names)
        total += cost
        coarse += cost if len(names) > 1 else 0.0
        if total < 0.5 * sum(costs[n] * len(v) for n, v in scores.items()):
            assert abs(coarse - share * total) <= largest
    assert (coarse > 0) == (share > 0)
