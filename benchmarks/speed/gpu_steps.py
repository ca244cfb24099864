"""What there is to measure where a GPU is at hand: time, waits and memory of training steps.

Dense steps, steps under gates, and taught ones, in fp32 and bf16, with and without blocks that
compute again; whether a step waits (`torch.cuda.set_sync_debug_mode`); the most memory that was
allocated, beside what core/step_memory.py foretells. With `--bundle` the same of an imported model,
such as that of `benchmarks.quality.large_models --shape 0.6b --steps source,import`. It runs on a
CPU, too, where neither waits nor memory are known.

`python -m benchmarks.speed.training_speed --device cuda` measures the peers.
"""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib.measurement import arguments, emit
from core import bundle
from core.config.trial import TrialConfig
from core.conformer.model import Conformer
from core.conformer.shape import Shape
from core.data.batching import Batch
from core.step_memory import estimate_step_memory, make_largest_stage, noise_batch
from core.training.loop import DenseStage, Rates, Trainable

WARM_UP = 3
RATES = Rates(peak=1e-5, warmup_share=0.0, weight_decay=0.0, clip=1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One kind of step."""

    kind: str
    """`dense`, or `taught`: under gates, with a teacher."""
    precision: str
    is_repeated: bool
    """Whether blocks compute again for their gradients."""


CASES = [
    Case(kind=kind, precision=precision, is_repeated=is_repeated)
    for precision in ("fp32", "bf16")
    for kind in ("dense", "taught")
    for is_repeated in (False, True)
]


def main() -> None:
    parser = arguments(__doc__)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    parser.add_argument("--size", default="tiny", help="of the model, if no bundle is given")
    parser.add_argument("--bundle", type=Path, help="an imported model")
    parser.add_argument("--seconds", type=float, default=60.0, help="of speech in a batch")
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    device = torch.device(args.device)
    rows = [row_of(case, args, device) for case in CASES]
    emit("gpu_steps", rows, {"device": args.device, "seconds": args.seconds}, args)


def row_of(case: Case, args: Any, device: torch.device) -> dict[str, Any]:
    config = TrialConfig.parse(
        {
            "model": {"size": args.size},
            "training": {"batch_seconds": args.seconds},
            "runtime": {"precision": case.precision, "checkpointing": case.is_repeated},
        }
    )
    shape = bundle.load(args.bundle).model.shape if args.bundle else Shape.of(config.model, 128)
    batch = noise_batch(config, shape, seconds=4.0)
    foretold = estimate_step_memory(config, shape, batch).peak if case.kind == "taught" else None
    stage, ready = stage_of(case, config, shape, device), batch.to(device)
    for _ in range(WARM_UP):
        stage.step(ready, 0)
    is_gpu = device.type == "cuda"
    if is_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    taken = [timed(stage, ready, device) for _ in range(args.repeats)]
    return {
        "step": case.kind,
        "precision": case.precision,
        "checkpointing": case.is_repeated,
        "ms": 1000 * statistics.median(taken),
        "audio_seconds_a_second": ready.seconds / statistics.median(taken),
        "waits": waits(stage, ready, device),
        "gigabytes": torch.cuda.max_memory_allocated(device) / 1e9
        if device.type == "cuda"
        else None,
        "foretold_gigabytes": None if foretold is None else foretold / 1e9,
    }


def stage_of(case: Case, config: TrialConfig, shape: Shape, device: torch.device) -> Trainable:
    if case.kind == "taught":
        return make_largest_stage(config, shape, device)
    with device:
        model = Conformer(shape)
    return DenseStage(
        model, stage="teacher", steps=2, rates=RATES, evaluator=None, runtime=config.runtime
    )


def timed(stage: Trainable, batch: Batch, device: torch.device) -> float:
    started = time.perf_counter()
    stage.step(batch, 0)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def waits(stage: Trainable, batch: Batch, device: torch.device) -> str | None:
    """Return the first wait of a step, as CUDA names it; empty if there is none."""
    if device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("error")
    try:
        stage.step(batch, 0)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


if __name__ == "__main__":
    main()
