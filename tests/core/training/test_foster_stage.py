"""FOSTER's promises: nothing old is touched, nothing but the head grows, what is rare counts."""

from dataclasses import replace

import pytest
import torch

from core.config.pruning import PruningConfig
from core.config.trial import BoostingConfig, RuntimeConfig
from core.conformer.model import Conformer
from core.data.batching import Batch
from core.evaluation.batch_decoding import best_tokens
from core.evaluation.token_error_rate import token_error_rate
from core.methods.magnitude import magnitudes
from core.pruning.extraction import as_mask, extract
from core.pruning.selection import Budget, choose
from core.pruning.space import Space
from core.report import Report
from core.testing import (
    SHAPE,
    TOY,
    make_patterned_speech,
    noise_with_tokens,
    ragged_speech,
    small_model,
)
from core.training.foster_stage import (
    Boosted,
    effective_weights,
    extend_head,
    extend_vocabulary,
    make_foster_stage,
)
from core.training.loop import DenseStage, Rates

RATES = Rates(peak=3e-3, warmup_share=0.2, weight_decay=0.01, clip=5.0)
OLD, ALL = SHAPE.vocabulary, SHAPE.vocabulary + 3
COUNTS = torch.tensor([0, 0, 9, 9, 9, 9, 9, 300, 300, 300])


def a_batch(seed=0) -> Batch:
    """Two utterances with new tokens, one with old ones."""
    return noise_with_tokens([7, 8, 9], [8, 9], [5, 2], seed=seed)


def a_stage(old, *, steps=8, evaluate=None, learning_rate=1e-3, **config):
    return make_foster_stage(
        old,
        vocabulary=ALL,
        steps=steps,
        rates=Rates(peak=learning_rate, warmup_share=0.1, weight_decay=0.01, clip=5.0),
        config=BoostingConfig(**config),
        runtime=RuntimeConfig(),
        counts=COUNTS,
        evaluate=evaluate or (lambda _: Report(stage="tune", step=0, total_steps=0)),
    )


def taken(stage, first=0, last=None):
    """The steps of a stage; their losses."""
    return [stage.step(a_batch(step % 2), step) for step in range(first, last or stage.steps)]


def test_before_it_is_boosted_a_model_says_of_old_tokens_what_it_said():
    old = small_model()
    features, num_frames = ragged_speech(90, 60)

    heard = Boosted(old, ALL).eval().boosted_outputs(features, num_frames)

    wanted = old(features, num_frames).logits
    torch.testing.assert_close(heard.fused.logits[..., :OLD], wanted)
    torch.testing.assert_close(heard.new.logits[..., :OLD], wanted)
    assert torch.equal(heard.old.logits, wanted)
    assert not heard.fused.logits[..., OLD:].any()


def test_more_tokens_are_more_rows_and_nothing_else():
    old = small_model()
    grown = extend_vocabulary(old, ALL)

    assert grown.shape == replace(old.shape, vocabulary=ALL)
    rows = dict.fromkeys(("head.weight", "head.bias"), OLD)
    for name, tensor in grown.state_dict().items():
        assert torch.equal(tensor[: rows.get(name)], old.state_dict()[name]), name
    assert old.head.out_features == OLD


def test_boosting_and_compressing_touch_nothing_of_the_old_model():
    old = small_model()
    before = {name: tensor.clone() for name, tensor in old.state_dict().items()}
    stage = a_stage(old)

    taken(stage)

    kept = stage.boosting.network.old.state_dict()
    for name, tensor in before.items():
        assert torch.equal(kept[name], tensor), name
        assert torch.equal(old.state_dict()[name], tensor), name
    new = dict(stage.boosting.network.new.named_parameters())
    assert not any(torch.equal(new[name], before[name]) for name in new if "head" not in name)


def test_what_is_left_has_the_old_shape_but_for_the_rows_of_new_tokens():
    old = small_model()
    stage = a_stage(old)

    taken(stage)

    def size(model):
        return sum(parameter.numel() for parameter in model.parameters())

    assert size(stage.model) == size(old) + (ALL - OLD) * (old.shape.width + 1)
    assert stage.model.shape == replace(old.shape, vocabulary=ALL)


def test_the_boosted_model_is_evaluated_until_it_is_compressed():
    evaluated = []

    def evaluate(model):
        evaluated.append(type(model).__name__)
        return Report(stage="tune", step=0, total_steps=0)

    stage = a_stage(small_model(), steps=4, share=0.5, evaluate=evaluate)
    for step in range(4):
        stage.step(a_batch(), step)
        stage.evaluate()

    assert evaluated == ["Boosted", "Boosted", "Conformer", "Conformer"]


@pytest.mark.slow
def test_new_tokens_are_learned_by_the_boosted_model_and_then_by_the_small_one():
    torch.manual_seed(0)
    stage = a_stage(small_model(), steps=80, learning_rate=3e-3)

    losses = taken(stage)

    # Even steps hear the same batch; the first 40 are boosting.
    assert losses[38]["task"] < 0.5 * losses[0]["task"]
    assert losses[78]["logit"] < 0.5 * losses[40]["logit"]


@pytest.mark.long
@pytest.mark.slow
def test_a_pruned_model_learns_new_tokens_and_keeps_the_old_ones_and_its_shape():
    old_tokens, new_tokens = range(1, 7), range(7, TOY.vocabulary)
    torch.manual_seed(0)
    small = halved(trained(Conformer(replace(TOY, vocabulary=7)), 150, old_tokens))
    trained(small, 60, old_tokens)
    before = [error(small, tokens) for tokens in (old_tokens, new_tokens)]

    def heard(step):  # each fourth batch is old speech, of which there is little
        if step % 4:
            return make_patterned_speech(16, seed=5000 + step, tokens=new_tokens)
        return make_patterned_speech(16, seed=6000 + step % 16, tokens=old_tokens)

    stage = make_foster_stage(
        small,
        vocabulary=TOY.vocabulary,
        steps=200,
        rates=RATES,
        config=BoostingConfig(),
        runtime=RuntimeConfig(),
        counts=sum(token_counts(heard(step)) for step in range(200)),
        evaluate=lambda _: Report(stage="tune", step=0, total_steps=0),
    )
    for step in range(stage.steps):
        stage.step(heard(step), step)
    after = [error(stage.model, tokens) for tokens in (old_tokens, new_tokens)]

    assert after[0] <= before[0] + 0.02
    assert before[1] > 0.9
    assert after[1] < 0.2
    assert replace(stage.model.shape, vocabulary=7) == small.shape


def trained(model, steps, tokens):
    stage = DenseStage(
        model, stage="teacher", steps=steps, rates=RATES, evaluator=None, runtime=RuntimeConfig()
    )
    for step in range(steps):
        stage.step(make_patterned_speech(16, seed=1000 + step, tokens=tokens), step)
    return model.eval()


def token_counts(batch):
    said = [batch.tokens[i, :n] for i, n in enumerate(batch.num_tokens.tolist())]
    return torch.bincount(torch.cat(said), minlength=TOY.vocabulary)


def halved(model):
    space = Space.of(model, PruningConfig().axes, 4.0)
    scores = magnitudes(model, space.prunable)
    return extract(model, as_mask(choose(space, scores, Budget(keep=0.5, resource="flops"))))


@torch.no_grad()
def error(model, tokens):
    batches = [make_patterned_speech(32, seed=90 + i, tokens=tokens) for i in range(4)]
    model.eval()
    return token_error_rate(
        [(best_tokens(model, model(b.features, b.num_frames)), b) for b in batches]
    )


@pytest.mark.parametrize("killed_at", [2, 4, 6])
def test_put_away_and_taken_up_again_it_ends_with_the_same_weights(killed_at):
    torch.manual_seed(0)
    whole = a_stage(small_model())
    taken(whole)
    torch.manual_seed(0)
    first = a_stage(small_model())
    taken(first, 0, killed_at)
    second = a_stage(small_model(seed=1))  # only what was kept may count

    second.restore(first.state())
    taken(second, killed_at)

    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor), name


def test_old_tokens_weigh_the_more_the_rarer_they_are_heard():
    weights = effective_weights(COUNTS, beta=0.97)

    assert weights.mean().item() == pytest.approx(1)
    effective = (1 - 0.97**9) / 0.03, (1 - 0.97**300) / 0.03
    assert (weights[2] / weights[7]).item() == pytest.approx(effective[1] / effective[0], rel=1e-5)
    assert weights.argmin() in (0, 1, 7, 8, 9)
    assert torch.equal(weights[[0, 1]], weights[[7, 7]])
    steeper = effective_weights(COUNTS, beta=0.99)
    assert steeper[2] / steeper[7] > weights[2] / weights[7]


def test_without_beta_or_without_any_token_all_weigh_the_same():
    assert torch.equal(effective_weights(COUNTS, beta=0.0), torch.ones(ALL))
    assert torch.equal(effective_weights(torch.zeros(4, dtype=torch.long), beta=0.9), torch.ones(4))


def test_a_head_grows_by_zeros():
    old = small_model().head

    grown = extend_head(old, inputs=20, outputs=9)

    assert torch.equal(grown.weight[:OLD, :16], old.weight)
    assert torch.equal(grown.bias[:OLD], old.bias)
    assert not grown.weight[OLD:].any()
    assert not grown.weight[:, 16:].any()
    assert not grown.bias[OLD:].any()
