"""Made-up outcomes and trials, for tests and for benchmarks with many trials."""

import random
from typing import Any

from core.report import Outcome
from sweep.ledger.records import TrialRecord

UNPRUNED_GFLOPS = 3.2
UNPRUNED_PARAMS = 1_400_000


def make_outcome(wer: float = 0.1, gflops: float = 1.0, **others: Any) -> Outcome:
    """An outcome that a trial could have; any field may be set."""
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
    """Finished trials of several methods, with the unpruned control as number 0."""
    rng = random.Random(seed)
    return [_make_record(number, rng) for number in range(count)]


def _make_record(number: int, rng: random.Random) -> TrialRecord:
    method = rng.choice(("l0", "l0", "l0", "magnitude", "uniform", "random")) if number else "dense"
    sparsity = rng.uniform(0.1, 0.92) if number else 0.0
    penalty = {"l0": 1.0, "magnitude": 1.3, "uniform": 1.9, "random": 2.6, "dense": 1.0}[method]
    wer = 0.034 + 0.05 * penalty * sparsity**4 + 0.02 * penalty * sparsity * rng.random() ** 2
    params: dict[str, Any] = {
        "pruning.method": method,
        "pruning.target_sparsity": sparsity,
        "pruning.l0.lambda_lr": 10 ** rng.uniform(-2, 0),
        "distillation.logit_weight": rng.random(),
        "distillation.layer_weight": 10 ** rng.uniform(-2, 0),
        "pruning.repair": rng.choice(("none", "mask", "ls")),
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
        seconds=rng.uniform(50, 90),
    )
