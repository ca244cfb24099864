"""Transducers' losses against torchaudio's and transformers', in turn.

From frames and predictions, a step is the joint over all places, the loss, and the gradients of all
that goes in. torchaudio and transformers get logits of all places, made by the same joint; here the
joint hands out what the lattice needs, block by block. From logits, a step is the loss of given
logits of all places, and their gradients.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor
from transformers.loss.loss_tdt import tdt_loss

from benchmarks.lib.measurement import arguments, emit, interleaved
from core.decoders.joint import Joint, score_logits
from core.decoders.lattice import LatticeScores, transducer_loss

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
        self.given: list[Tensor] = []
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
            "torchaudio": lambda: self._torchaudio(*self._whole(())),
            "tdt": lambda: self._own(DURATIONS),
            "transformers": lambda: self._transformers(*self._whole(DURATIONS)),
        }

    def runs_of_logits(self) -> dict[str, Callable[[], None]]:
        """The same without the joint."""
        plain, timed = (
            [each.detach().clone().requires_grad_() for each in self._whole(durations)]
            for durations in ((), DURATIONS)
        )
        self.given = [*plain, *timed]
        return {
            "rnnt": lambda: self._own_of_logits(*plain),
            "torchaudio": lambda: self._torchaudio(*plain),
            "tdt": lambda: self._own_of_logits(*timed),
            "transformers": lambda: self._transformers(*timed),
        }

    def _own(self, durations: tuple[int, ...]) -> None:
        scores = self.joints[durations].scores(self.encoded, self.predicted, self.tokens)
        self._descend(transducer_loss(scores.arcs(), *self.lengths))

    def _own_of_logits(self, logits: Tensor, of_durations: Tensor) -> None:
        durations = DURATIONS if of_durations.shape[-1] else ()
        following = F.pad(self.tokens, (0, 1), value=self.blank)
        blank, label, duration = score_logits(logits, of_durations, following, blank=self.blank)
        scores = LatticeScores(blank=blank, label=label, duration=duration, durations=durations)
        self._descend(transducer_loss(scores.arcs(), *self.lengths))

    def _torchaudio(self, logits: Tensor, of_durations: Tensor) -> None:
        del of_durations
        losses = torchaudio.functional.rnnt_loss(
            logits,
            self.tokens.int(),
            *(each.int() for each in self.lengths),
            blank=self.blank,
            reduction="none",
        )
        self._descend(losses)

    def _transformers(self, logits: Tensor, of_durations: Tensor) -> None:
        losses = tdt_loss(
            logits,
            of_durations,
            self.tokens,
            *self.lengths,
            self.blank,
            [*DURATIONS],
            reduction="none",
        )
        self._descend(losses)

    def _whole(self, durations: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        joint = self.joints[durations]
        frames, places = joint.encoder(self.encoded), joint.predictor(self.predicted)
        return joint.logits(frames[:, :, None], places[:, None])

    def _descend(self, losses: Tensor) -> None:
        for joint in self.joints.values():
            joint.zero_grad()
        for given in (self.encoded, self.predicted, *self.given):
            given.grad = None
        losses.sum().backward()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [row for size in SIZES for row in rows_of(size, args)]
    emit("transducer_loss", rows, {"width": WIDTH, "threads": args.threads}, args)


def rows_of(size: tuple[int, int, int, int], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    step = Step(size)
    for start, runs in (("frames", step.runs()), ("logits", step.runs_of_logits())):
        seconds = interleaved(runs, repeats=args.repeats)
        ms = {f"{name}_ms": 1000 * statistics.median(each) for name, each in seconds.items()}
        faster = {
            f"{name}_faster": statistics.median(
                other / own for other, own in zip(seconds[theirs], seconds[name], strict=True)
            )
            for name, theirs in (("rnnt", "torchaudio"), ("tdt", "transformers"))
        }
        yield {"name": "B {} T {} U {} V {}".format(*size), "from": start, **ms, **faster}


if __name__ == "__main__":
    main()
