"""Blocks that compute their results again: the same numbers, of less memory."""

import pytest
import torch

from core.config.trial import TrialConfig
from core.conformer.masking import fold, gated_forward, named_tensors
from core.conformer.norm import BatchNorm
from core.step_memory import estimate_step_memory, noise_batch
from core.testing import deeper, ragged_speech, random_mask, small_model


@pytest.mark.parametrize("narrow_from", [None, 0.0])
@pytest.mark.parametrize("kind", ["open", "soft", "empty_blocks"])
def test_gradients_and_statistics_are_the_same_to_the_last_bit(kind, narrow_from):
    features, num_frames = ragged_speech(61, 40, 33)
    found = []
    for repeats in (False, True):
        model = small_model(shape=deeper(3)).train()
        model.set_dropout(0.3)
        model.repeats_blocks = repeats
        mask = random_mask(model.axes(), kind)
        torch.manual_seed(1)
        folded = fold(named_tensors(model), model.axes(), mask, narrow_from=narrow_from)
        output = gated_forward(model, features, num_frames, folded)
        output.logits.square().mean().backward()
        found.append(
            {
                "logits": output.logits,
                **{name: p.grad for name, p in model.named_parameters() if p.grad is not None},
                **{f"{module.name} {i}": statistic for i, module, statistic in statistics(model)},
            }
        )

    plain, repeated = found
    assert plain.keys() == repeated.keys()
    for name, values in plain.items():
        assert torch.equal(repeated[name], values), name


def statistics(model):
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    return [
        (name, norm, getattr(norm, name))
        for norm in norms
        for name in ("running_mean", "running_var")
    ]


def test_activations_take_less_memory_the_more_blocks_there_are():
    def activations(blocks: int, *, is_repeated: bool) -> int:
        config = TrialConfig.parse({"runtime": {"checkpointing": is_repeated}})
        shape = deeper(blocks)
        batch = noise_batch(config, shape, seconds=4.0)
        return estimate_step_memory(config, shape, batch).activations

    plain, repeated = (
        activations(8, is_repeated=r) - activations(4, is_repeated=r) for r in (False, True)
    )

    assert repeated < plain / 3
