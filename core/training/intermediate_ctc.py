"""Training for later removal of blocks: CTC after middle blocks, and stochastic depth.

Intermediate CTC (Lee & Watanabe, 2021) adds CTC losses of the states after some middle blocks,
through the model's own head:

    L = (1 - w) CTC(head(x_L)) + w mean over k of CTC(head(x_k))

Each of our blocks ends in a norm, in the place of an encoder's final norm; so the loss at block k
trains exactly the model of the first k blocks.

Stochastic depth (Huang et al., 2016) skips block l of L with probability p l / L in a training
step; otherwise the outputs of its modules are scaled by 1 / (1 - p l / L). The norm is skipped,
too: training must skip exactly what extraction removes. (LDASR, another depth-on-demand Conformer,
keeps the norm of a block that it drops; for that, remove its four modules instead.)
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.config.base import ConfigError
from core.config.trial import TeacherConfig
from core.conformer.model import NOTHING, Conformer
from core.conformer.output import Output
from core.data.batching import Batch
from core.decoders.ctc import ctc_loss
from core.distributed import broadcast_draw


@dataclass(frozen=True, kw_only=True, slots=True)
class InterCTC:
    """The blocks, counted from 1, that have an intermediate CTC loss, and its weight."""

    weight: float = 0.0
    layers: tuple[int, ...] = ()

    @classmethod
    def of(cls, config: TeacherConfig, num_blocks: int) -> "InterCTC":
        """Read the settings of a config; without layers, the middle block is used.

        Raises:
            ConfigError: if a block is not before the last one.
        """
        if config.interctc_weight == 0:
            return cls()
        # Of 6 blocks without a setting: block 3, whose state is `hidden[2]`.
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
        """Return `total`, and with a weight above 0 the middle blocks' mean as `intermediate`.

        Args:
            task: the CTC loss of the last block.
            model: has the head.
            output: of the model on the batch.
            batch: speech with its words.
        """
        if self.weight == 0:
            return {"total": task, "task": task}
        middle = [
            replace(output, ctc_logits=model.ctc_head(output.hidden[layer - 1]))
            for layer in self.layers
        ]
        intermediate_losses = [ctc_loss(early, batch.tokens, batch.num_tokens) for early in middle]
        intermediate = torch.stack(intermediate_losses).mean()
        total = (1 - self.weight) * task + self.weight * intermediate
        return {"total": total, "task": task, "intermediate": intermediate}


def has_stochastic_depth(model: Conformer) -> bool:
    return any(block.skip_probability > 0 for block in model.typed_blocks())


def sample_skips(model: Conformer) -> frozenset[str]:
    """Sample the blocks that this step skips; without stochastic depth nothing is sampled."""
    if not has_stochastic_depth(model):
        return frozenset(NOTHING)
    blocks = model.typed_blocks()
    # One draw for all ranks: batch norms exchange moments, and a rank that runs a block would wait
    # for one that skips it.
    draws = broadcast_draw(torch.rand(len(blocks))).tolist()
    pairs = zip(blocks, draws, strict=True)
    return frozenset(block.name for block, draw in pairs if draw < block.skip_probability)
