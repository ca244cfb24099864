"""What the error does not miss is worth nothing; what it misses most, most."""

from dataclasses import replace

import pytest
import torch

from core.decoders.ctc import greedy
from core.methods.mope import error_growth
from core.pruning.ablation import groups
from core.testing import deeper, make_patterned_speech, small_model
from core.training.method import load_method

PLANTED = "blocks.1.ff2"


@pytest.fixture
def ctx(context_of):
    """Of a model with one module that says anything, on speech labelled by itself."""
    model = small_model(shape=deeper(3))
    with torch.no_grad():
        model.head.bias[0] = -9.0  # blank is never heard, so there are words
        for part in (part for block in model.blocks for part in block.parts()):
            output = part.output if part.name.endswith("attention") else part.down
            output.weight.mul_(9.0 if part.name == PLANTED else 0.0)
            output.bias.zero_()
    batch = make_patterned_speech(6, seed=0)
    heard = model(batch.features, batch.num_frames)
    words = greedy(heard.logits, heard.num_frames)
    tokens = torch.zeros(len(words), max(map(len, words)), dtype=torch.long)
    for row, ids in zip(tokens, words, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    labelled = replace(batch, tokens=tokens, num_tokens=torch.tensor([len(ids) for ids in words]))
    return replace(context_of("mope", model=model), labeled=[labelled])


def test_modules_that_do_nothing_are_worth_exactly_nothing_and_the_planted_one_most(ctx):
    modules = [axis for axis in ctx.space.prunable if axis.kind == "module"]
    edits = groups(modules, {axis.name: torch.ones(1) for axis in modules}, count=1)

    growth = {edit.axis.name: worth for edit, worth in error_growth(ctx, edits)}

    assert growth.pop(PLANTED) > 0.05
    assert set(growth.values()) == {0.0}


def test_what_would_lower_the_error_is_worth_no_less_than_nothing(ctx):
    wrong = replace(ctx.labeled[0], tokens=ctx.labeled[0].tokens.roll(1, 0))
    modules = [axis for axis in ctx.space.prunable if axis.kind == "module"]
    edits = groups(modules, {axis.name: torch.ones(1) for axis in modules}, count=1)

    growth = error_growth(replace(ctx, labeled=[wrong]), edits)

    assert all(worth >= 0 for _, worth in growth)


def test_ties_stand_by_the_rewiring_score(ctx):
    scores = load_method("mope").search_result(ctx, None).scores

    idle = torch.cat([scores[n] for n in scores if n.startswith("blocks.0.ff1.")])
    planted = torch.cat([scores[n] for n in scores if n.startswith(f"{PLANTED}.")])
    assert idle.max() < planted.max()
    for values in scores.values():
        assert len(values.unique()) == len(values) or values.isinf().any()
