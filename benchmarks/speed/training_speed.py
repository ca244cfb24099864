"""Training throughput of our encoder against other libraries': same shape, same batch, in turn.

A step is forward and backward of the blocks alone, fed frames of the residual width, all real; no
optimizer, no front end. Dropout is where each library has it: ours after the four modules of a
block, the peers also inside them; `--dropout 0` compares without any. Peers that are not installed
are named.

Shapes: B batch, T frames, D width.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.lib.measurement import arguments, emit, interleaved
from benchmarks.lib.peers import Peer, Sizes, installed
from core.config.trial import ModelConfig
from core.conformer.model import Conformer
from core.conformer.shape import Shape
from core.training.optim_step import autocast

OURS = "ours"
PRECISIONS = ("fp32", "bf16")


def main() -> None:
    args = parsed()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    sizes = Sizes(width=256, blocks=6, heads=4, inner=1024, kernel=31, dropout=args.dropout)
    torch.manual_seed(0)
    peers, absent = installed(sizes, device)
    encoders = {OURS: ours(sizes, device), **peers}
    x = torch.randn(args.batch, args.frames, sizes.width, device=device)
    steps = {
        precision: {name: stepper(peer, x, precision) for name, peer in encoders.items()}
        for precision in PRECISIONS
    }
    if args.profile:
        for precision in PRECISIONS:
            print_profile(steps[precision][OURS], precision)
        return
    seconds = {p: interleaved(steps[p], repeats=args.repeats) for p in PRECISIONS}
    # A frame of the encoder is 40 ms of speech.
    speech = args.batch * args.frames * 0.04
    rows = [row_of(name, encoders[name], seconds, speech) for name in encoders]
    ratios = {f"ratio_{p}": to_fastest(seconds[p]) for p in PRECISIONS}
    said = {"absent": absent, "dropout": args.dropout, "threads": args.threads}
    emit("training_speed", rows, {**ratios, **said}, args)


def parsed() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--frames", type=int, default=250)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--profile", action="store_true", help="print where our step goes instead")
    return parser.parse_args()


def ours(sizes: Sizes, device: torch.device) -> Peer:
    config = ModelConfig(
        blocks=sizes.blocks,
        width=sizes.width,
        inner=sizes.inner,
        heads=sizes.heads,
        channels=sizes.width,
        kernel=sizes.kernel,
        frontend_channels=1,
    )
    model = Conformer(Shape.of(config, vocabulary=2)).to(device).train()
    model.set_dropout(sizes.dropout)
    return Peer(model=model, forward=lambda x, is_frame: model.encode_blocks(x, is_frame)[-1])


def stepper(peer: Peer, x: Tensor, precision: str) -> Callable[[], None]:
    is_frame = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    wanted = torch.randn_like(x)
    # A front end would want the gradient of what it gave.
    x = x.clone().requires_grad_()

    def step() -> None:
        x.grad = None
        peer.model.zero_grad(set_to_none=True)
        with autocast(x.device, precision):
            y = peer.forward(x, is_frame)
        (y.float() * wanted).mean().backward()
        if x.device.type == "cuda":
            torch.cuda.synchronize()

    return step


def row_of(
    name: str, peer: Peer, seconds: dict[str, dict[str, list[float]]], speech: float
) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "params": sum(p.numel() for p in trained(peer))}
    for precision in PRECISIONS:
        median = statistics.median(seconds[precision][name])
        row[f"{precision}_ms"] = 1000 * median
        row[f"{precision}_audio_seconds_a_second"] = speech / median
        row[f"{precision}_of_ours"] = statistics.median(
            theirs / own
            for theirs, own in zip(seconds[precision][name], seconds[precision][OURS], strict=True)
        )
    return row


def trained(peer: Peer) -> list[Tensor]:
    """The parameters that a step reaches."""
    return [p for p in peer.model.parameters() if p.grad is not None]


def to_fastest(seconds: dict[str, list[float]]) -> float | None:
    """How many times as fast as the fastest peer ours is: the median over rounds."""
    peers = {name: statistics.median(s) for name, s in seconds.items() if name != OURS}
    if not peers:
        return None
    fastest = min(peers, key=lambda name: peers[name])
    pairs = zip(seconds[fastest], seconds[OURS], strict=True)
    return statistics.median(theirs / own for theirs, own in pairs)


def print_profile(step: Callable[[], None], precision: str, steps: int = 3) -> None:
    step()
    activities = [ProfilerActivity.CPU]
    key = "self_cpu_time_total"
    if torch.cuda.is_available():
        activities, key = [*activities, ProfilerActivity.CUDA], "self_cuda_time_total"
    with profile(activities=activities) as found:
        for _ in range(steps):
            step()
    print(f"{precision}, {steps} steps")
    print(found.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=40))


if __name__ == "__main__":
    main()
