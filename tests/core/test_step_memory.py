"""Memory is foretold to the byte, from shapes alone."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from core.config.trial import TrialConfig
from core.conformer.model import Conformer
from core.data.batching import Batch
from core.step_memory import LiveBytes, estimate_step_memory
from core.testing import SHAPE, make_patterned_speech, with_transducer


@pytest.fixture
def batch():
    return make_patterned_speech(3, seed=0, tokens=range(1, SHAPE.vocabulary))


def test_live_bytes_are_those_of_tensors_that_are_alive():
    with FakeTensorMode(), LiveBytes() as live:
        x = torch.zeros(1000)
        y = x.view(10, 100) + 1
        assert live.now == 8000
        del x
        assert live.now == 4000  # a view of `x` is gone with it
        y.mul_(2)
        views = [y[:5]]
        del y
        assert live.now == 4000  # a view of `y` is there
        views.clear()
        assert live.now == 0
    assert live.peak == 8000


@pytest.mark.parametrize("kind", [None, "stateless rnnt", "lstm tdt"])
def test_weights_gradients_and_the_optimizer_are_what_they_are(kind, batch):
    shape = with_transducer(SHAPE, kind) if kind else SHAPE
    model = Conformer(shape)

    memory = estimate_step_memory(TrialConfig(), shape, batch)

    student = sum(t.nbytes for t in model.state_dict().values())
    learned = sum(t.nbytes for t in model.parameters())
    projection = 4 * (shape.width + 1) * shape.width
    gates = 4 * sum(axis.size for axis in model.axes() if axis.kind not in ("block", "rank"))
    weights = 2 * student + projection + gates
    assert weights <= memory.weights <= weights + 2000  # two multipliers, starts of gates
    assert memory.gradients == learned + projection + gates + 8
    assert memory.optimizer == pytest.approx(2 * memory.gradients, rel=0.05)  # and counts of steps
    assert memory.peak > memory.weights + memory.optimizer + memory.gradients


def test_activations_grow_with_the_batch_and_shrink_with_its_parts():
    def activations(utterances, parts=1):
        config = TrialConfig.parse({"training": {"micro_batches": parts}})
        batch = Batch(
            features=torch.zeros(utterances, 200, 80),
            num_frames=torch.full((utterances,), 200),
            tokens=torch.ones(utterances, 5, dtype=torch.long),
            num_tokens=torch.full((utterances,), 5),
            seconds=2.0 * utterances,
            ids=("",) * utterances,
            texts=("",) * utterances,
            indices=tuple(range(utterances)),
        )
        return estimate_step_memory(config, SHAPE, batch).activations

    assert activations(16) == pytest.approx(2 * activations(8), rel=0.15)
    assert activations(16, parts=2) == pytest.approx(activations(8), rel=0.1)
