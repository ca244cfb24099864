"""Transducers' losses against torchaudio's and transformers', from frames and predictions, in turn.

A step is the joint over all places, the loss, and the gradients of all that goes in. torchaudio and
transformers get logits of all places, made by the same joint; here the joint hands out what the
lattice needs, block by block.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torchaudio
from torch import Tensor
from transformers.loss.loss_tdt import tdt_loss

from benchmarks.lib.measurement import arguments, emit, interleaved
from core.decoders.joint import Joint
from core.decoders.lattice import transducer_loss

SIZES = ((8, 100, 20, 100), (4, 125, 50, 1025), (1, 250, 80, 1025))
"""Utterances, frames, tokens, vocabulary."""
DURATIONS = (0, 1, 2, 3, 4)
WIDTH = 640
"""Of encoder, predictor and joint: NeMo's."""


class Step:
    """The joint, its inputs, and each program's loss of them."""

    def __init__(self, size: tuple[int, int, int, int]) -> None:
        batch, time, tokens, vocabulary = size
        torch.manual_seed(0)
        self.encoded = torch.randn(batch, time, WIDTH, requires_grad=True)
        self.predicted = torch.randn(batch, tokens + 1, WIDTH, requires_grad=True)
        self.blank = vocabulary - 1
        self.tokens = torch.randint(0, self.blank, (batch, tokens))
        self.lengths = torch.full((batch,), time), torch.full((batch,), tokens)
        self.joints: dict[tuple[int, ...], Joint] = {
            durations: Joint(
                encoder_width=WIDTH,
                predictor_width=WIDTH,
                width=WIDTH,
                vocabulary=vocabulary,
                blank=self.blank,
                durations=durations,
            )
            for durations in ((), DURATIONS)
        }

    def runs(self) -> dict[str, Callable[[], None]]:
        return {
            "rnnt": lambda: self._own(()),
            "torchaudio": self._torchaudio,
            "tdt": lambda: self._own(DURATIONS),
            "transformers": self._transformers,
        }

    def _own(self, durations: tuple[int, ...]) -> None:
        scores = self.joints[durations].scores(self.encoded, self.predicted, self.tokens)
        self._descend(transducer_loss(scores.arcs(), *self.lengths), self.joints[durations])

    def _torchaudio(self) -> None:
        logits, _ = self._whole(())
        losses = torchaudio.functional.rnnt_loss(
            logits,
            self.tokens.int(),
            *(each.int() for each in self.lengths),
            blank=self.blank,
            reduction="none",
        )
        self._descend(losses, self.joints[()])

    def _transformers(self) -> None:
        losses = tdt_loss(
            *self._whole(DURATIONS),
            self.tokens,
            *self.lengths,
            self.blank,
            [*DURATIONS],
            reduction="none",
        )
        self._descend(losses, self.joints[DURATIONS])

    def _whole(self, durations: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        joint = self.joints[durations]
        frames, places = joint.encoder(self.encoded), joint.predictor(self.predicted)
        return joint.logits(frames[:, :, None], places[:, None])

    def _descend(self, losses: Tensor, joint: Joint) -> None:
        joint.zero_grad()
        self.encoded.grad = self.predicted.grad = None
        losses.sum().backward()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [row_of(size, args) for size in SIZES]
    emit("transducer_loss", rows, {"width": WIDTH, "threads": args.threads}, args)


def row_of(size: tuple[int, int, int, int], args: argparse.Namespace) -> dict[str, Any]:
    seconds = interleaved(Step(size).runs(), repeats=args.repeats)
    ms = {f"{name}_ms": 1000 * statistics.median(each) for name, each in seconds.items()}
    faster = {
        f"{name}_faster": statistics.median(
            other / own for other, own in zip(seconds[theirs], seconds[name], strict=True)
        )
        for name, theirs in (("rnnt", "torchaudio"), ("tdt", "transformers"))
    }
    return {"name": "B {} T {} U {} V {}".format(*size), **ms, **faster}


if __name__ == "__main__":
    main()
