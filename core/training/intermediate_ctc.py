"""Training that lets blocks be left out later: CTC after middle blocks, and stochastic depth.

Intermediate CTC (Lee & Watanabe, 2021) asks the states after some middle blocks for the transcript,
through the model's own head:

    L = (1 - w) CTC(head(x_L)) + w mean over k of CTC(head(x_k))

Each of our blocks ends in a norm, which stands where an encoder's final norm would; so what is
trained at block k is the model of the first k blocks, exactly.

Stochastic depth (Huang et al., 2016) passes by block l of L with probability p l / L in a training
step; what its modules add otherwise is scaled by 1 / (1 - p l / L). Norm and all: what training
leaves out must be what extraction removes. (LDASR, another depth-on-demand Conformer, keeps the
norm of a block that it drops; then cut its four modules instead, whose norm stays.)
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.config.base import ConfigError
from core.config.trial import TeacherConfig
from core.conformer.model import NOTHING, Conformer, Output
from core.data.batching import Batch
from core.distributed import broadcast_draw
from core.training.distillation import ctc_loss


@dataclass(frozen=True, kw_only=True, slots=True)
class InterCTC:
    """After which blocks, counted from 1, the transcript is asked for, and how much it counts."""

    weight: float = 0.0
    layers: tuple[int, ...] = ()

    @classmethod
    def of(cls, config: TeacherConfig, num_blocks: int) -> "InterCTC":
        """As a config asks for it; after the middle block if it names none.

        Raises:
            ConfigError: if a block is not a middle one of so many.
        """
        if config.interctc_weight == 0:
            return cls()
        layers = tuple(config.interctc_layers) or (num_blocks // 2,)
        for layer in layers:
            if not 1 <= layer < num_blocks:
                raise ConfigError(
                    f"`teacher.interctc_layers` must lie before the last of the model's"
                    f" {num_blocks} blocks, but one is {layer} instead"
                )
        return cls(weight=config.interctc_weight, layers=layers)

    def losses(
        self, task: Tensor, model: Conformer, output: Output, batch: Batch
    ) -> dict[str, Tensor]:
        """`total`, with the mean over the middle blocks as `intermediate` if it counts at all."""
        if self.weight == 0:
            return {"total": task, "task": task}
        middle = [
            replace(output, logits=model.head(output.hidden[layer - 1])) for layer in self.layers
        ]
        each = [ctc_loss(early, batch.tokens, batch.num_tokens) for early in middle]
        intermediate = torch.stack(each).mean()
        total = (1 - self.weight) * task + self.weight * intermediate
        return {"total": total, "task": task, "intermediate": intermediate}


def has_stochastic_depth(model: Conformer) -> bool:
    return any(block.skip_probability > 0 for block in model.typed_blocks())


def drawn_skips(model: Conformer) -> frozenset[str]:
    """The blocks that this step passes by; nothing is drawn where none ever is."""
    if not has_stochastic_depth(model):
        return frozenset(NOTHING)
    blocks = model.typed_blocks()
    chances = broadcast_draw(torch.rand(len(blocks))).tolist()
    pairs = zip(blocks, chances, strict=True)
    return frozenset(block.name for block, chance in pairs if chance < block.skip_probability)
