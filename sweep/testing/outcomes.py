"""Made-up outcomes and trials: for tests, and for measuring what many trials cost."""

import random
from typing import Any

from core.report import Outcome
from sweep.ledger.records import TrialRecord

UNPRUNED_GFLOPS = 3.2
UNPRUNED_PARAMS = 1_400_000


def make_outcome(wer: float = 0.1, gflops: float = 1.0, **others: Any) -> Outcome:
    """An outcome that a trial could have had; any field may be set."""
    share = max(0.0, 1 - gflops / UNPRUNED_GFLOPS)
    values: dict[str, Any] = {
        "method": "l0",
        "resource": "flops",
        "target_sparsity": share,
        "realised_sparsity": share,
        "wer": wer,
        "wer_low": 0.85 * wer,
        "wer_high": 1.17 * wer,
        "test_wer": 1.1 * wer,
        "test_wer_low": 0.95 * wer,
        "test_wer_high": 1.25 * wer,
        "gflops": gflops,
        "params": max(1000, round(UNPRUNED_PARAMS * (1 - 0.95 * share))),
        "flops_sparsity": share,
        "params_sparsity": 0.95 * share,
        "latency_ms": 4 + 12 * gflops,
        "real_time_factor": (4 + 12 * gflops) / 10_000,
        "steps": 700,
        "model": "model",
    }
    return Outcome(**(values | others))


def make_records(count: int, *, seed: int = 0) -> list[TrialRecord]:
    """So many finished trials of several methods, and the unpruned control as number 0."""
    chance = random.Random(seed)  # noqa: S311
    return [_made_record(number, chance) for number in range(count)]


def _made_record(number: int, chance: random.Random) -> TrialRecord:
    method = (
        chance.choice(("l0", "l0", "l0", "magnitude", "uniform", "random")) if number else "dense"
    )
    sparsity = chance.uniform(0.1, 0.92) if number else 0.0
    penalty = {"l0": 1.0, "magnitude": 1.3, "uniform": 1.9, "random": 2.6, "dense": 1.0}[method]
    wer = 0.034 + 0.05 * penalty * sparsity**4 + 0.02 * penalty * sparsity * chance.random() ** 2
    params: dict[str, Any] = {
        "pruning.method": method,
        "pruning.target_sparsity": sparsity,
        "pruning.l0.lambda_lr": 10 ** chance.uniform(-2, 0),
        "distillation.logit_weight": chance.random(),
        "distillation.layer_weight": 10 ** chance.uniform(-2, 0),
        "pruning.repair": chance.choice(("none", "mask", "ls")),
    }
    outcome = make_outcome(
        min(wer, 1.0), UNPRUNED_GFLOPS * (1 - sparsity), method=method, target_sparsity=sparsity
    )
    return TrialRecord(
        number=number,
        state="finished",
        params=params,
        outcomes=(outcome,),
        attempts=1,
        steps=700,
        total_steps=700,
        seconds=chance.uniform(50, 90),
    )
