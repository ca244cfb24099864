"""Where a training step waits for the GPU: lines that let the host read a result, or copy one.

On a GPU, `item`, `nonzero`, an index by booleans and a copy to the host stop the host until the
device is idle, and nothing runs ahead. Steps run on a GPU that is not there
(benchmarks/lib/fake_device.py), so this is counted on every machine; what CUDA's own kernels copy
inside is not.
"""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.lib.fake_device import GPU, fake_gpu
from benchmarks.lib.measurement import arguments, emit
from benchmarks.speed.masked_overhead import UTTERANCES, Steps
from core.config.trial import TrialConfig
from core.conformer.model import Conformer
from core.conformer.shape import Shape
from core.decoders.task_loss import task_loss

STEPS = ("dense", "masked", "taught", "dense, rnnt", "dense, tdt")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--size", default="tiny", help="of the model")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in STEPS:
        with fake_gpu() as counter:
            run = step_of(name, args.size)
            run()  # what is made at the first step alone
            counter.places.clear()
            run()
        rows += [{"step": name, "waits": counter.places.total(), "where": "all of them"}]
        rows += [
            {"step": name, "waits": count, "where": place}
            for place, count in counter.places.most_common()
        ]
    emit("waits", rows, {"size": args.size}, args)


def step_of(name: str, size: str) -> Callable[[], None]:
    kind, _, decoder = name.partition(", ")
    if decoder:
        return transducer_step(size, decoder)
    run: Callable[[], None] = getattr(Steps(size, "fp32", device=GPU), kind)
    return run


def transducer_step(size: str, decoder: str) -> Callable[[], None]:
    """Forward and backward of a model with a transducer."""
    config = TrialConfig.parse({"model": {"size": size, "decoder": decoder}})
    model = Conformer(Shape.of(config.model, 128)).train().to(GPU)
    features, num_frames = torch.randn(UTTERANCES, 400, 80), torch.full((UTTERANCES,), 400)
    tokens, num_tokens = torch.randint(1, 128, (UTTERANCES, 12)), torch.full((UTTERANCES,), 12)
    features, tokens = features.to(GPU), tokens.to(GPU)

    def step() -> None:
        model.zero_grad()
        task_loss(model(features, num_frames, tokens=tokens), tokens, num_tokens).backward()

    return step


if __name__ == "__main__":
    main()
