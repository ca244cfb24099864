"""From which utterance length on attention in linear time costs less than softmax, and saves time.

FLOPs and measured time of one attention module of a size of model, batch 1, by utterance length.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.lib.measurement import arguments, emit, interleaved
from core.config.trial import ModelConfig
from core.conformer.attention import Attention, distance_table
from core.conformer.axes import Lengths
from core.conformer.linear_attention import crossover_frames
from core.conformer.shape import Shape

SECONDS = (2.5, 5.0, 10.0, 20.0, 40.0)
FRAME_SECONDS = 0.04


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--size", choices=("tiny", "small", "medium", "large"), default="tiny")
    parser.add_argument("--features", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shape = Shape.of(ModelConfig(size=args.size), 128)
    rows = [row for seconds in SECONDS for row in measured(shape, seconds, args)]
    crossovers = {str(m): crossover_seconds(shape, m) for m in args.features}
    for m, seconds in crossovers.items():
        print(f"{args.size}: {m} features cost fewer FLOPs than softmax from {seconds:.1f} s on")
    emit("crossover", rows, {"size": args.size, "crossover_seconds": crossovers}, args)


def crossover_seconds(shape: Shape, features: int) -> float:
    frames = crossover_frames(
        features=features, head_width=shape.head_width, position_width=shape.position_width
    )
    return FRAME_SECONDS * frames


@torch.inference_mode()
def measured(shape: Shape, seconds: float, args: argparse.Namespace) -> list[dict[str, object]]:
    """Softmax, then each number of features, by turns on the same utterance."""
    time = Lengths.of(seconds).frames
    torch.manual_seed(0)
    modules = {m: attention(shape, m) for m in (0, *args.features)}
    x, is_frame = torch.randn(1, time, shape.width), torch.ones(1, time, dtype=torch.bool)
    table = distance_table(
        time, shape.position_width, device=torch.device("cpu"), dtype=torch.float32
    )
    runs = {str(m): lambda a=a: a(x, is_frame, table) for m, a in modules.items()}
    flops = {m: counted(run) for m, run in runs.items()}
    took = interleaved(runs, repeats=args.repeats)
    return [
        {
            "name": f"{m} features" if m != "0" else "softmax",
            "seconds": seconds,
            "mflops": flops[m] / 1e6,
            "flops_ratio": flops[m] / flops["0"],
            "ms": 1000 * statistics.median(took[m]),
            "time_ratio": statistics.median(
                linear / softmax for linear, softmax in zip(took[m], took["0"], strict=True)
            ),
        }
        for m in runs
    ]


def attention(shape: Shape, features: int) -> Attention:
    return Attention(
        width=shape.width,
        position_width=shape.position_width,
        heads=shape.blocks[0].heads,
        head_width=shape.head_width,
        name="attention",
        ranks={},
        linear_features=features,
    ).eval()


def counted(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
