"""Every method that is not of CTC alone, on a model with a transducer."""

import pytest
import torch

from core.config.base import ConfigError
from core.config.methods import method_names
from core.config.trial import TrialConfig
from core.conformer.masking import fold, gated_forward, named_tensors
from core.decoders.task_loss import task_loss
from core.pruning.extraction import as_mask, extract
from core.pruning.reconstruction import extract_and_reconstruct
from core.testing import TOY, make_patterned_speech, run_method, small_model, with_transducer

METHODS = [name for name in method_names() if name not in ("dense", "foster", "interctc", "mope")]
"""`mope` decodes by hundreds of edits: in tests/core/evaluation/test_batch_decoding.py."""

pytestmark = [pytest.mark.slow, pytest.mark.whole]


@pytest.fixture(scope="module")
def taught():
    """A model with a transducer that has learned a little of patterned speech."""
    torch.manual_seed(0)
    model = small_model(shape=with_transducer(TOY, "lstm tdt"))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(4):
        batch = make_patterned_speech(8, seed=step)
        output = model(batch.features, batch.num_frames, tokens=batch.tokens)
        optimizer.zero_grad()
        task_loss(output, batch.tokens, batch.num_tokens).backward()
        optimizer.step()
    return model.eval()


OFTEN = ("l0", "obs", "magnitude", "acip", "family")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in OFTEN else pytest.mark.long) for n in METHODS]
)
def test_masked_computes_what_extracted_does_and_repair_what_a_forward_pass_can(
    name, taught, context_of
):
    ctx = context_of(name, model=taught, steps=4)
    found = run_method(ctx)
    choice = ctx.choose(found.scores, 0.5)
    mask, student = as_mask(choice), ctx.student.eval()
    batch = make_patterned_speech(4, seed=50)

    with torch.no_grad():
        folded = fold(named_tensors(student), student.axes(), mask)
        masked = gated_forward(
            student, batch.features, batch.num_frames, folded, tokens=batch.tokens
        )
        small = extract(student, mask).eval()
        cut = small(batch.features, batch.num_frames, tokens=batch.tokens)

    real = cut.is_frame
    torch.testing.assert_close(
        cut.lattice.label[real], masked.lattice.label[real], atol=1e-4, rtol=1e-4
    )
    assert ctx.space.sparsity(ctx.space.choice_cost(choice), "flops") >= 0.5
    for how in ("ls", "sequential"):
        repaired = extract_and_reconstruct(
            student, found.reference, choice, how=how, speech=ctx.speech
        )
        output = repaired.eval()(batch.features, batch.num_frames, tokens=batch.tokens)
        assert task_loss(output, batch.tokens, batch.num_tokens).isfinite()
        assert repaired.shape == small.shape


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"pruning": {"method": "foster"}}, "foster"),
        ({"pruning": {"method": "interctc"}}, "interctc"),
        ({"teacher": {"interctc_weight": 0.3, "interctc_layers": [1]}}, "interctc_weight"),
        ({"pruning": {"resource": "latency"}}, "latency as a resource"),
    ],
)
def test_what_needs_a_ctc_head_is_refused_by_name(settings, named):
    with pytest.raises(ConfigError, match=f"{named}.*must go with a CTC model"):
        TrialConfig.parse({"model": {"decoder": "tdt"}, **settings})
