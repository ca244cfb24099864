"""How a training step's seconds and kept memory grow with length, width, depth and ranks.

Growth is said as an exponent: cost ~ size ** exponent, fitted to logarithms by least squares.
Memory is what autograd keeps for the backward pass. Ranks share one batch by gloo, each on one
thread.
With `--corpus` it also says what share of a corpus's batches is padding.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from benchmarks.lib.measurement import arguments, emit, interleaved
from core.conformer.model import Conformer
from core.conformer.shape import BlockShape, Shape
from core.data.batching import padded_frames, plan_epoch
from core.distributed import current, join_ranks, open_store, together
from core.features.kaldi import FRAMES_PER_SECOND
from core.features.spec import NATIVE

CPU = torch.device("cpu")
BASE = {"seconds": 8, "width": 128, "depth": 4}
GRID = {"seconds": (2, 4, 8, 16, 32), "width": (64, 128, 256, 512), "depth": (2, 4, 8, 16)}
RANKS = (1, 2)
UTTERANCES = 4


def main() -> None:
    args = parsed()
    torch.set_num_threads(args.threads)
    rows = [row for axis in GRID for row in grown(axis, args.repeats)]
    exponents = {
        f"{axis}_{cost}": exponent([row for row in rows if row["name"] == axis], cost)
        for axis in GRID
        for cost in ("step_seconds", "kept_bytes")
    }
    rows += ranked(args.repeats)
    values: dict[str, Any] = {"exponents": exponents}
    if args.corpus:
        values["padding_share"] = padding_share(args.corpus, args.batch_seconds)
    print({name: round(value, 2) for name, value in exponents.items()} | values)
    emit("scaling", rows, values, args)


def parsed() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--corpus", type=Path, help="folder below which sound files lie")
    parser.add_argument("--batch-seconds", type=float, default=60.0)
    return parser.parse_args()


def grown(axis: str, repeats: int) -> list[dict[str, Any]]:
    """Steps of all sizes along one axis, in turn."""
    sizes = {str(value): {**BASE, axis: value} for value in GRID[axis]}
    steps = {name: stepper(**size) for name, size in sizes.items()}
    seconds = interleaved(steps, repeats=repeats)
    return [
        {
            "name": axis,
            "value": GRID[axis][i],
            "step_seconds": statistics.median(seconds[name]),
            "kept_bytes": kept_bytes(steps[name]),
        }
        for i, name in enumerate(steps)
    ]


def shape_of(width: int, depth: int) -> Shape:
    block = BlockShape(ff1=4 * width, heads=4, channels=width, ff2=4 * width)
    return Shape(
        sub1=32,
        sub2=32,
        width=width,
        position_width=width,
        head_width=width // 4,
        kernel=31,
        vocabulary=128,
        blocks=(block,) * depth,
    )


def stepper(*, seconds: int, width: int, depth: int, batch: int = UTTERANCES) -> Callable[[], None]:
    torch.manual_seed(0)
    model = Conformer(shape_of(width, depth)).train()
    model.set_dropout(0.1)
    features = torch.randn(batch, seconds * FRAMES_PER_SECOND, NATIVE.mels)
    num_frames = torch.full((batch,), seconds * FRAMES_PER_SECOND)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(features, num_frames).logits.mean().backward()
        current().add_up([p.grad for p in model.parameters() if p.grad is not None])

    return step


def kept_bytes(step: Callable[[], None]) -> int:
    """What one step keeps for its backward pass, each storage once."""
    sizes: dict[int, int] = {}
    held: list[Tensor] = []  # lest a storage be freed and its address be another's

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(sizes.values())


def ranked(repeats: int) -> list[dict[str, Any]]:
    """Steps on one batch by so many processes; the first row's seconds over ranks is ideal."""
    rows = []
    for size in RANKS:
        store = open_store("localhost")
        address = f"localhost:{store.port}"
        with ProcessPoolExecutor(size, mp_context=get_context("spawn")) as pool:
            found = list(
                pool.map(
                    ranked_seconds, range(size), [size] * size, [address] * size, [repeats] * size
                )
            )
        rows.append(
            {"name": "ranks", "value": size, "step_seconds": max(found), "kept_bytes": None}
        )
    return rows


def ranked_seconds(rank: int, size: int, store: str, repeats: int) -> float:
    """A rank's median, in a process of its own."""
    torch.set_num_threads(1)
    step = stepper(**BASE, batch=2 * UTTERANCES // size)
    with join_ranks(rank=rank, size=size, store=store, device=CPU) as ranks, together(ranks):
        taken = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            step()
            taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])


def exponent(rows: Sequence[Mapping[str, Any]], cost: str) -> float:
    values = np.log([row["value"] for row in rows])
    return float(np.polyfit(values, np.log([row[cost] for row in rows]), 1)[0])


def padding_share(corpus: Path, batch_seconds: float) -> float:
    """Of an epoch's frames in batches, those that are padding."""
    files = sorted(p for p in corpus.rglob("*") if p.suffix in {".wav", ".flac", ".ogg"})
    seconds = np.array([soundfile.info(file).duration for file in files])
    num_frames = np.floor(seconds * FRAMES_PER_SECOND).astype(int)
    plan = plan_epoch(num_frames, batch_seconds, seed=0, epoch=0)
    held = sum(len(batch) * padded_frames(int(num_frames[batch].max())) for batch in plan)
    return 1 - int(num_frames.sum()) / held


if __name__ == "__main__":
    main()
