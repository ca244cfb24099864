"""Where a training step waits for the device: lines that let the host read a result.

On a GPU, `item`, `nonzero`, an index by booleans and the like stop the host until the device is
idle, and nothing runs ahead. They are counted on the CPU, by the operators that a step dispatches,
at the innermost line of core/. What `tolist` and `numpy` read is no operator there and not counted,
and neither are optimizers, whose counters of steps lie on the host.
"""

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.lib.measurement import arguments, emit
from benchmarks.speed.masked_overhead import UTTERANCES, Steps
from core.config.trial import TrialConfig
from core.conformer.model import Conformer
from core.conformer.shape import Shape
from core.decoders.task_loss import task_loss

ATEN = torch.ops.aten
READ_BY_HOST = {
    ATEN._local_scalar_dense.default,  # noqa: SLF001 - the operator of `item`
    ATEN.nonzero.default,
    ATEN.masked_select.default,
    ATEN.equal.default,
    ATEN._unique2.default,  # noqa: SLF001 - that of `unique`
    ATEN.unique_dim.default,
    ATEN.unique_consecutive.default,
    ATEN.repeat_interleave.Tensor,
}
INDEXED = {ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default}
FOLDER = "core/"


class WaitCounter(TorchDispatchMode):
    """Counts waits by the line of core/ that asks."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.places: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func in READ_BY_HOST or (func in INDEXED and has_booleans(args[1])):
            place = innermost_place()
            self.places.update([place] if place else [])
        return func(*args, **(kwargs or {}))


def has_booleans(indices: Any) -> bool:
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)


def innermost_place() -> str:
    """The line of core/ that runs, such as `core/conformer/norm.py:61`; "" if there is none."""
    frame: Any = sys._getframe()  # noqa: SLF001 - cheaper than a traceback
    while frame is not None:
        _, found, rest = frame.f_code.co_filename.rpartition(f"/{FOLDER}")
        if found:
            return f"{FOLDER}{rest}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--size", default="tiny", help="of the model")
    args = parser.parse_args()
    steps = Steps(args.size, "fp32")
    runs: dict[str, Callable[[], None]] = {
        "dense": steps.dense,
        "masked": steps.masked,
        "taught": steps.taught,
        **{f"dense, {decoder}": transducer_step(args.size, decoder) for decoder in ("rnnt", "tdt")},
    }
    rows = []
    for name, run in runs.items():
        run()  # what is made at the first step alone
        with WaitCounter() as counter:
            run()
        rows += [{"step": name, "waits": counter.places.total(), "where": "all of them"}]
        rows += [
            {"step": name, "waits": count, "where": place}
            for place, count in counter.places.most_common()
        ]
    emit("waits", rows, {"size": args.size}, args)


def transducer_step(size: str, decoder: str) -> Callable[[], None]:
    """Forward and backward of a model with a transducer."""
    config = TrialConfig.parse({"model": {"size": size, "decoder": decoder}})
    model = Conformer(Shape.of(config.model, 128)).train()
    speech = torch.randn(UTTERANCES, 400, 80), torch.full((UTTERANCES,), 400)
    words = torch.randint(1, 128, (UTTERANCES, 12)), torch.full((UTTERANCES,), 12)

    def step() -> None:
        model.zero_grad()
        task_loss(model(*speech, tokens=words[0]), *words).backward()

    return step


if __name__ == "__main__":
    main()
