"""Its policy learns its reward from weights alone; that reward, a weak one, is what it says."""

import statistics

import pytest
import torch

from core.methods.prunenet import reward, train_policy


@pytest.fixture(scope="module")
def matrices():
    """Rows of very different norms, as training leaves them."""
    chance = torch.Generator().manual_seed(0)
    return [
        torch.randn(48, 16, generator=chance) * torch.logspace(-1.5, 0.5, 48)[:, None]
        for _ in range(2)
    ]


def test_the_spectrum_of_some_rows_lies_within_that_of_all(matrices):
    for weight in matrices:
        rows = torch.randperm(48, generator=torch.Generator().manual_seed(1))[:20]
        whole, part = torch.linalg.svdvals(weight), torch.linalg.svdvals(weight[rows])
        assert bool((part <= whole[: len(part)] + 1e-5).all())


def test_all_rows_are_rewarded_most(matrices):
    weight = matrices[0]

    assert reward(weight, torch.arange(48)) > reward(weight, torch.arange(24))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("kept", [0.5, 0.3])
def test_its_best_rows_are_rewarded_more_than_chance_and_its_worst_less(kept, toy):
    matrices = [part.up.weight.detach() for block in toy.blocks for part in (block.ff1, block.ff2)]
    rows, chance = len(matrices[0]), torch.Generator().manual_seed(2)
    count = round(kept * rows)

    def mean_reward(choice):
        return statistics.mean(reward(weight, choice(weight)[:count]) for weight in matrices)

    at_random = statistics.mean(
        mean_reward(lambda _: torch.randperm(rows, generator=chance)) for _ in range(20)
    )
    for seed in range(3):
        policy = train_policy(matrices, keep=kept, seed=seed)
        best = mean_reward(lambda weight, policy=policy: policy(weight).argsort(descending=True))
        worst = mean_reward(lambda weight, policy=policy: policy(weight).argsort())
        assert best > at_random > worst


def test_the_same_seed_learns_the_same_policy(matrices):
    one, other = (train_policy(matrices, keep=0.5, seed=3, episodes=3) for _ in range(2))

    assert torch.equal(one(matrices[0]), other(matrices[0]))
