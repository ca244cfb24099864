import pytest
import torch

from core.data.batching import Batch
from core.training.optim_step import accumulate_gradients


@pytest.fixture(scope="module")
def batch():
    return Batch(
        features=torch.randn(6, 40, 80),
        num_frames=torch.full((6,), 40),
        tokens=torch.ones(6, 2, dtype=torch.long),
        num_tokens=torch.full((6,), 2),
        seconds=2.4,
        ids=tuple("abcdef"),
        texts=("word",) * 6,
        indices=tuple(range(6)),
    )


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 6])
def test_a_batch_in_parts_leaves_the_gradient_of_the_whole(batch, parts):
    """For a mean over utterances without batch-norm, which sees one part at a time."""
    weight = torch.randn(80, dtype=torch.float64, requires_grad=True)

    def losses(part):
        found = (part.features.double().mean(1) @ weight).square().mean()
        return {"total": found, "task": found}

    whole = losses(batch)["total"]
    (wanted,) = torch.autograd.grad(whole, weight)
    found = accumulate_gradients(batch, losses, parts=parts, optimizers=[torch.optim.SGD([weight])])

    torch.testing.assert_close(weight.grad, wanted)
    torch.testing.assert_close(found["total"], whole.detach())
    assert not found["task"].requires_grad
