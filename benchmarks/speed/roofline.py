"""What share of the machine's measured peak of matrix products training and inference reach.

The peak is that of the best product, of a model's sizes or larger, measured in turn with the model.
FLOPs of a step are those that torch counts: forward and backward, of products and convolutions.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.lib.measurement import arguments, emit, interleaved
from core.config.trial import ModelConfig
from core.conformer.model import Conformer
from core.conformer.shape import Shape
from core.features.spec import NATIVE
from core.training.optim_step import autocast

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
PRODUCTS = ((4096, 256, 1024), (4096, 1024, 256), (2048, 2048, 2048))
"""Rows, inner size and columns."""


def main() -> None:
    args = parsed()
    torch.set_num_threads(args.threads)
    rows = [row for precision in PRECISIONS for row in measured(precision, args)]
    training = {row["precision"]: row["share"] for row in rows if row["name"] == "training"}
    shares = {f"share_{precision}": training[precision] for precision in PRECISIONS}
    emit("roofline", rows, {**shares, "threads": args.threads, "size": args.size}, args)


def parsed() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=("tiny", "small", "medium", "large"), default="small")
    parser.add_argument("--batch", type=int, default=15)
    parser.add_argument("--mel-frames", type=int, default=400)
    return parser.parse_args()


def measured(precision: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    device = torch.device(args.device)
    products = {
        f"product {sizes}": product(sizes, PRECISIONS[precision], device) for sizes in PRODUCTS
    }
    torch.manual_seed(0)
    model = Conformer(Shape.of(ModelConfig(size=args.size), 128)).to(device)
    features = torch.randn(args.batch, args.mel_frames, NATIVE.mels, device=device)
    num_frames = torch.full((args.batch,), args.mel_frames, device=device)
    passes = {
        "training": partial(trained, model, features, num_frames, precision),
        "inference": partial(inferred, model, features, num_frames, precision),
    }
    runs = products | passes
    flops = {name: counted(run) for name, run in runs.items()}
    ended = {name: partial(synchronised, run, device) for name, run in runs.items()}
    seconds = interleaved(ended, repeats=args.repeats)
    rates = {name: flops[name] / statistics.median(seconds[name]) / 1e9 for name in runs}
    peak = max(rates[name] for name in products)
    return [
        {"name": name, "precision": precision, "gflops_a_second": rate, "share": rate / peak}
        for name, rate in rates.items()
    ]


def product(
    sizes: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> Callable[[], None]:
    rows, inner, columns = sizes
    a = torch.randn(rows, inner, device=device, dtype=dtype)
    b = torch.randn(inner, columns, device=device, dtype=dtype)

    def run() -> None:
        torch.mm(a, b)

    return run


def trained(
    model: Conformer, features: torch.Tensor, num_frames: torch.Tensor, precision: str
) -> None:
    model.train()
    model.set_dropout(0.1)
    model.zero_grad(set_to_none=True)
    with autocast(features.device, precision):
        output = model(features, num_frames)
    output.logits.float().mean().backward()


@torch.no_grad()
def inferred(
    model: Conformer, features: torch.Tensor, num_frames: torch.Tensor, precision: str
) -> None:
    model.eval()
    with autocast(features.device, precision):
        model(features, num_frames)


def counted(run: Callable[[], None]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def synchronised(run: Callable[[], None], device: torch.device) -> None:
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
