import pytest
import torch

from core.config.methods import method_names
from core.pruning.scoring import rank_within_axis
from core.training.gate_stage import GateMethod
from core.training.hard_concrete_stage import centered_ranks, scores_at_once
from core.training.method import load_method


@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_centred_ranks_lie_evenly_about_0(size):
    scores = torch.rand(size, generator=torch.Generator().manual_seed(0))

    ranks = centered_ranks(rank_within_axis({"a": scores})["a"]).sort().values

    torch.testing.assert_close(ranks, -ranks.flip(0))
    if size > 1:
        torch.testing.assert_close(ranks, torch.linspace(-1, 1, size))


@pytest.mark.parametrize("name", method_names())
def test_what_trains_or_alters_or_cuts_blocks_alone_does_not_score_at_once(name):
    method = load_method(name)

    cannot = isinstance(method, GateMethod) or name in ("dense", "family", "interctc", "performer")
    assert scores_at_once(method) == (not cannot)
