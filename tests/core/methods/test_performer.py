"""What `performer` makes of a teacher's copy; the laws all methods share stand elsewhere."""

from typing import get_args

import pytest
import torch

from core.config.base import ConfigError
from core.config.pruning import AxisKind
from core.config.trial import TrialConfig
from core.methods.performer import METHOD, shifts, with_linear_attention
from core.pruning.extraction import as_mask, clone, extract
from core.pruning.selection import Budget, choose
from core.pruning.space import Space, whole_cost
from core.testing import deeper, ragged_speech, small_model
from core.training.method import NeedError, guard_audio

SPEECH = [ragged_speech(90, 60), ragged_speech(70, seed=1)]


def a_config(seed=0, **settings) -> TrialConfig:
    return TrialConfig.parse(
        {"seed": seed, "pruning": {"method": "performer", "performer": settings}}
    )


def linear_blocks(model) -> list[int]:
    return [i for i, block in enumerate(model.shape.blocks) if block.linear_features]


@pytest.mark.parametrize(("wanted", "blocks"), [("all", [0, 1, 2]), ([2, 0], [0, 2])])
def test_attention_is_swapped_in_the_blocks_that_are_wanted(wanted, blocks):
    model = small_model(shape=deeper(3))

    new = METHOD.prepare_model(
        clone(model), a_config(linear_blocks=wanted, linear_features=4), SPEECH
    )

    assert linear_blocks(new) == blocks
    for block, sizes in zip(new.typed_blocks(), new.shape.blocks, strict=True):
        assert (block.attention.linear is not None) == bool(sizes.linear_features)
    before = model.state_dict()
    assert set(new.state_dict()) - set(before) == {
        f"blocks.{i}.attention.linear.directions" for i in blocks
    }
    assert all(torch.equal(new.state_dict()[name], tensor) for name, tensor in before.items())
    assert linear_blocks(model) == []


def test_so_many_blocks_are_those_whose_swap_shifts_the_output_least():
    model = small_model(shape=deeper(3))
    with torch.no_grad():
        model.blocks[1].attention.output.weight.zero_()  # nobody hears what it mixes
        model.blocks[2].attention.output.weight.mul_(9)

    chosen = [
        linear_blocks(METHOD.prepare_model(clone(model), a_config(linear_blocks=n), SPEECH))
        for n in (1, 2, 3)
    ]

    assert shifts(model, [1], 64, 0, SPEECH) == {1: 0}
    assert chosen == [[1], [0, 1], [0, 1, 2]]


def test_the_swap_depends_on_the_seed_and_leaves_chance_alone():
    model, state = small_model(), torch.get_rng_state()

    def directions(seed):
        tensors = METHOD.prepare_model(clone(model), a_config(seed), SPEECH).state_dict()
        return [tensors[f"blocks.{i}.attention.linear.directions"] for i in range(2)]

    assert all(torch.equal(a, b) for a, b in zip(directions(0), directions(0), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(directions(0), directions(1), strict=True))
    assert not torch.equal(*directions(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_speech_is_touched_only_to_choose_blocks():
    nothing = guard_audio(SPEECH, frozenset())
    METHOD.prepare_model(small_model(), a_config(linear_blocks=[1]), nothing)

    assert guard_audio(SPEECH, METHOD.needs) is SPEECH
    with pytest.raises(NeedError, match="must name audio"):
        METHOD.prepare_model(small_model(), a_config(linear_blocks=1), nothing)


@pytest.mark.parametrize(
    ("wanted", "message"), [(3, "but is 3 instead"), ([0, 2], r"\[0, 1\], but is \[0, 2\] instead")]
)
def test_blocks_that_are_not_there_are_refused(wanted, message):
    config = a_config(linear_blocks=wanted)

    with pytest.raises(
        ConfigError, match=f"`pruning.performer.linear_blocks` must be within the 2.*{message}"
    ):
        METHOD.prepare_model(small_model(), config, SPEECH)


def test_a_block_without_attention_has_none_to_swap():
    model = small_model()
    small = extract(model, {"blocks.0.attention": torch.zeros(1)})

    assert linear_blocks(METHOD.prepare_model(small, a_config(), SPEECH)) == [1]
    with pytest.raises(ConfigError, match=r"within the 1 blocks that have attention, \[1\]"):
        METHOD.prepare_model(small, a_config(linear_blocks=2), SPEECH)


def test_a_swapped_model_may_be_swapped_again():
    once = with_linear_attention(small_model(), [0], 4, 0)

    again = with_linear_attention(once, [0, 1], 8, 0)

    assert [block.linear_features for block in again.shape.blocks] == [8, 8]
    assert torch.isfinite(again(*SPEECH[0]).logits).all()


@pytest.mark.parametrize("features", [4, 200])
def test_the_budget_is_a_share_of_the_model_with_softmax(features):
    teacher = small_model()
    student = with_linear_attention(teacher, [0, 1], features, 0)
    space = Space.of(student, get_args(AxisKind), 4.0, unpruned=teacher)
    units = [axis for axis in space.prunable if axis.kind != "module"]
    scores = {axis.name: torch.rand(axis.size) for axis in units}
    before, after = whole_cost(teacher, 4.0).flops, whole_cost(student, 4.0).flops

    choice = choose(space, scores, Budget(keep=0.7, resource="flops"), is_filled=True)

    assert (after > before) == (features == 200)
    assert whole_cost(extract(student, as_mask(choice)), 4.0).flops <= 0.7 * before
