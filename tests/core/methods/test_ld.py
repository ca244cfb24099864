"""A latent shift is 0 where nothing changes, and sees what matters, in whatever order."""

from dataclasses import replace

import pytest
import torch
from scipy.stats import spearmanr

from core.conformer.masking import gated_forward
from core.decoders.ctc import ctc_loss
from core.methods.ld import FeatureMoments
from core.methods.magnitude import magnitudes
from core.pruning.ablation import groups, identity_fold, measure_edits
from core.testing import make_patterned_speech
from core.training.method import load_method

pytestmark = pytest.mark.whole


def all_groups(ctx):
    axes = list(ctx.space.units)
    return groups(axes, magnitudes(ctx.student, axes), count=4)


def shifts(ctx, speech):
    watch = FeatureMoments(ctx.student, speech)
    return torch.stack([s for _, s in measure_edits(ctx.student, all_groups(ctx), watch.shift)])


def test_an_edit_that_does_nothing_shifts_nothing(context_of):
    ctx = context_of("ld")
    with torch.no_grad():
        ctx.student.blocks[1].ff1.down.weight.zero_()
    watch = FeatureMoments(ctx.student, ctx.speech)

    found = [
        (edit.axis.name, float(shift))
        for edit, shift in measure_edits(ctx.student, all_groups(ctx), watch.shift)
    ]

    assert float(watch.shift(identity_fold(ctx.student))) == 0
    idle = [shift for name, shift in found if name == "blocks.1.ff1.inner"]
    assert idle
    assert max(idle) < 1e-5
    assert all(shift > 1e-4 for name, shift in found if name != "blocks.1.ff1.inner")


def test_the_order_of_utterances_and_of_batches_is_nothing(context_of):
    ctx = context_of("ld")
    batch = make_patterned_speech(8, seed=3)
    mixed = torch.tensor([5, 2, 7, 0, 1, 6, 4, 3])

    one = shifts(ctx, [(batch.features, batch.num_frames)])
    other = shifts(ctx, [(batch.features[mixed], batch.num_frames[mixed])])
    parts = [(p.features, p.num_frames) for p in batch.parts(2)]
    halves = shifts(ctx, parts)

    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(one, halves, rtol=1e-3, atol=1e-5)


def test_each_edit_costs_one_pass_over_the_speech(context_of):
    ctx = context_of("ld")
    passes = 0

    class Counted(list):
        def __iter__(self):
            nonlocal passes
            passes += 1
            return super().__iter__()

    load_method("ld").search_result(replace(ctx, speech=Counted(ctx.speech)), None)

    assert passes == 1 + len(all_groups(ctx))


@pytest.mark.slow
def test_what_shifts_more_is_missed_more(context_of):
    ctx = context_of("ld")
    batch = make_patterned_speech(32, seed=60)

    def loss(folded):
        output = gated_forward(ctx.student.eval(), batch.features, batch.num_frames, folded)
        return ctc_loss(output, batch.tokens, batch.num_tokens)

    losses = [float(value) for _, value in measure_edits(ctx.student, all_groups(ctx), loss)]

    assert spearmanr(shifts(ctx, ctx.speech), losses).statistic > 0.3
