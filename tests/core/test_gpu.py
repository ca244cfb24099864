"""On a GPU: numbers are those of the CPU, and memory is what was foretold."""

import pytest
import torch

from core.config.trial import TrialConfig
from core.conformer.model import Conformer
from core.conformer.shape import Shape
from core.decoders.task_loss import task_loss
from core.step_memory import estimate_step_memory, make_largest_stage, noise_batch
from core.testing import SHAPE, TRANSDUCERS, make_patterned_speech, with_transducer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SHAPES = {"ctc": SHAPE, **{kind: with_transducer(SHAPE, kind) for kind in TRANSDUCERS}}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_loss_and_gradients_are_those_of_the_cpu(shape):
    torch.manual_seed(0)
    model, batch = Conformer(shape).train(), make_patterned_speech(3, seed=0, tokens=range(1, 7))
    found = []
    for device in ("cpu", "cuda"):
        own, ready = Conformer(shape).train(), batch.to(device)
        own.load_state_dict(model.state_dict())
        own.to(device)
        output = own(ready.features, ready.num_frames, tokens=ready.tokens)
        loss = task_loss(output, ready.tokens, ready.num_tokens)
        loss.backward()
        found.append([loss.cpu(), *(p.grad.cpu() for p in own.parameters() if p.grad is not None)])

    for on_cpu, on_gpu in zip(*found, strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("is_repeated", [False, True])
def test_a_taught_step_needs_the_memory_that_was_foretold(is_repeated):
    config = TrialConfig.parse({"runtime": {"checkpointing": is_repeated}})
    shape = Shape.of(config.model, 128)
    batch = noise_batch(config, shape, seconds=4.0)
    stage, ready = make_largest_stage(config, shape, torch.device("cuda")), batch.to("cuda")
    torch.cuda.reset_peak_memory_stats()
    for step in range(2):
        stage.step(ready, step)

    measured = torch.cuda.max_memory_allocated()
    assert measured == pytest.approx(estimate_step_memory(config, shape, batch).peak, rel=0.15)
