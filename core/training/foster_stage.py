"""Incremental learning at constant model size: our reading of FOSTER for CTC.

Boosting: the old model is frozen, and a second encoder, which starts as its copy, learns what the
old one gets wrong; a fused head reads both. Compression: a model of the old one's shape learns the
outputs of both by distillation in which rare tokens weigh more (F.-Y. Wang et al., 2022). CTC
replaces cross-entropy; the blank, as the most frequent symbol, has the smallest weight.

Shapes: B batch, T frames, M mel bins, D width, V vocabulary, O old vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.config.trial import BoostingConfig, RuntimeConfig
from core.conformer.model import Conformer
from core.conformer.output import Output
from core.data.batching import Batch
from core.decoders.ctc import CtcHead, ctc_loss
from core.pruning.extraction import clone
from core.report import Report, Stage
from core.training.distillation import logit_loss
from core.training.loop import Rates
from core.training.optim_step import autocast, optimizer_step
from core.training.optimizers import primal

BLANK = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class BoostedOutputs:
    """The outputs of each part of a boosted model on the same speech."""

    fused: Output
    new: Output
    """The output of the second encoder with its own head, which is trained, too."""
    old: Output
    """The output of the old model, over the old vocabulary."""


class Boosted(nn.Module):
    """The frozen old model, a second encoder, and a head that reads both."""

    def __init__(self, old: Conformer, vocabulary: int) -> None:
        super().__init__()
        self.old = clone(old).requires_grad_(requires_grad=False)
        self.old.set_dropout(0.0)
        self.new = extend_vocabulary(old, vocabulary)
        # Columns for the second encoder and rows for new tokens are 0: at first the fused head
        # gives the old logits, and 0 for new tokens.
        self.head = extend_head(old.ctc_head, inputs=2 * old.shape.width, outputs=vocabulary)

    def forward(
        self, features: Float[Tensor, "batch mel_frames mels"], num_frames: Int[Tensor, " batch"]
    ) -> Output:
        return self.boosted_outputs(features, num_frames).fused

    def boosted_outputs(
        self, features: Float[Tensor, "batch mel_frames mels"], num_frames: Int[Tensor, " batch"]
    ) -> BoostedOutputs:
        with torch.no_grad():
            old = self.old(features, num_frames)
        new = self.new(features, num_frames)
        both = torch.cat((old.hidden[-1], new.hidden[-1]), dim=-1)  # (B, T, 2 D)
        # The lengths of the new one, which a model in training knows on the host.
        fused = replace(new, hidden=old.hidden, encoded=old.encoded, ctc_logits=self.head(both))
        return BoostedOutputs(fused=fused, new=new, old=old)

    def train(self, mode: bool = True) -> "Boosted":  # noqa: FBT001, FBT002 - torch's signature
        """Keep the old model in evaluation mode, so that its statistics do not change."""
        super().train(mode)
        self.old.eval()
        return self


class Boosting:
    """The training of the second encoder and the fused head."""

    def __init__(
        self,
        network: Boosted,
        *,
        steps: int,
        rates: Rates,
        config: BoostingConfig,
        runtime: RuntimeConfig,
        counts: Int[Tensor, " vocabulary"],
        teacher: Conformer | None = None,
        micro_batches: int = 1,
    ) -> None:
        """Make the first half of the stage.

        Args:
            network: the old model and the second encoder.
            steps: of boosting.
            rates: of the optimizer.
            config: the weights of the losses.
            runtime: precision.
            counts: how often each token occurs in the training texts.
            teacher: gives the targets of old tokens; the old model itself by default.
            micro_batches: parts in which a batch is computed.
        """
        self.network, self.steps, self.rates, self.config = network, steps, rates, config
        network.new.repeats_blocks = runtime.checkpointing
        self.precision, self.micro_batches = runtime.precision, micro_batches
        self.teacher = teacher
        weights = effective_weights(counts, beta=config.boost_beta)
        self.class_weights = weights.to(network.old.device)
        trainable = [*network.new.parameters(), *network.head.parameters()]
        self.primal = primal(trainable, learning_rate=rates.peak, weight_decay=rates.weight_decay)

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        self.network.train()
        return optimizer_step(
            batch,
            self._losses,
            parts=self.micro_batches,
            optimizer=self.primal,
            rate=self.rates.at(step, steps=self.steps),
            clip=self.rates.clip,
        )

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        with autocast(batch.features.device, self.precision):
            outputs = self.network.boosted_outputs(batch.features, batch.num_frames)
            target = outputs.old.logits
            if self.teacher is not None:
                with torch.no_grad():
                    features = batch.features.to(self.teacher.dtype)
                    target = self.teacher(features, batch.num_frames).logits
            fused = outputs.fused.logits
            # Divided by its weight, a rare token's logit must be that much larger to be as likely.
            divided = replace(outputs.fused, ctc_logits=fused / self.class_weights)
            tasks = [
                ctc_loss(output, batch.tokens, batch.num_tokens)
                for output in (divided, outputs.new)
            ]
            logit = logit_loss(
                # Old tokens come first, so the old model's logits align with the first ones.
                fused[..., : target.shape[-1]],
                target,
                outputs.new.frame_numbers(),
                self.config.temperature,
            )
        task = torch.stack(tasks).sum()
        return {"total": task + self.config.old_weight * logit, "task": task, "logit": logit}

    def state(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "primal": self.primal.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.primal.load_state_dict(state["primal"])


class Compression:
    """The training of a model of the old one's shape on the outputs of a boosted one."""

    def __init__(
        self,
        model: Conformer,
        network: Boosted,
        *,
        steps: int,
        rates: Rates,
        config: BoostingConfig,
        runtime: RuntimeConfig,
        counts: Int[Tensor, " vocabulary"],
        micro_batches: int = 1,
    ) -> None:
        self.model, self.network = model, network
        model.repeats_blocks = runtime.checkpointing
        self.steps, self.rates, self.config = steps, rates, config
        self.precision, self.micro_batches = runtime.precision, micro_batches
        self.class_weights = effective_weights(counts, beta=config.compress_beta).to(model.device)
        self.primal = primal(
            model.parameters(), learning_rate=rates.peak, weight_decay=rates.weight_decay
        )

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        self.model.train()
        self.network.eval()
        return optimizer_step(
            batch,
            self._losses,
            parts=self.micro_batches,
            optimizer=self.primal,
            rate=self.rates.at(step, steps=self.steps),
            clip=self.rates.clip,
        )

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        config = self.config
        with autocast(batch.features.device, self.precision):
            with torch.no_grad():
                target = self.network(batch.features, batch.num_frames)
            output = self.model(batch.features, batch.num_frames)
            task = ctc_loss(output, batch.tokens, batch.num_tokens)
            logit = logit_loss(
                output.logits,
                target.logits,
                output.frame_numbers(),
                config.temperature,
                class_weights=self.class_weights,
            )
        return {"total": config.task_weight * task + logit, "task": task, "logit": logit}

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "primal": self.primal.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.primal.load_state_dict(state["primal"])


class FosterStage:
    """Boosting, then compression, as one stage for `fit`."""

    stage: Stage = "tune"

    def __init__(
        self,
        boosting: Boosting,
        compression: Compression,
        evaluate: Callable[[Boosted | Conformer], Report],
    ) -> None:
        """Join both; `evaluate` measures the boosted model, and later the small one."""
        self.boosting, self.compression, self.measure = boosting, compression, evaluate
        self.model = compression.model
        self.steps = boosting.steps + compression.steps
        self.done = 0

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        self.done = step + 1
        first = self.boosting.steps
        if step < first:
            return self.boosting.step(batch, step)
        return self.compression.step(batch, step - first)

    def evaluate(self) -> Report:
        # `done` steps are complete: after the last step of boosting, the boosted model is measured
        # once more.
        is_boosting = self.done <= self.boosting.steps
        return self.measure(self.boosting.network if is_boosting else self.model)

    def state(self) -> dict[str, Any]:
        return {
            "done": self.done,
            "boosting": self.boosting.state(),
            "compression": self.compression.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.done = state["done"]
        self.boosting.restore(state["boosting"])
        self.compression.restore(state["compression"])


def make_foster_stage(
    old: Conformer,
    *,
    vocabulary: int,
    steps: int,
    rates: Rates,
    config: BoostingConfig,
    runtime: RuntimeConfig,
    counts: Int[Tensor, " vocabulary"],
    evaluate: Callable[[Boosted | Conformer], Report],
    teacher: Conformer | None = None,
    micro_batches: int = 1,
) -> FosterStage:
    """Make both stages from one old model; the result has its shape, with a larger vocabulary.

    Args:
        old: the model to extend; it is not changed.
        vocabulary: the number of tokens, the old ones first.
        steps: of both stages together.
        rates: of each stage.
        config: the share of boosting, and the weights of the losses.
        runtime: device and precision.
        counts: how often each token occurs in the training texts.
        evaluate: measures the boosted model, and then the small one.
        teacher: gives the targets of old tokens while boosting; `old` by default.
        micro_batches: parts in which a batch is computed.
    """
    # A share of 0.5 of 301 steps: 150 of boosting and 151 of compression.
    boost_steps = round(config.share * steps)
    network = Boosted(old, vocabulary)
    boosting = Boosting(
        network,
        steps=boost_steps,
        rates=rates,
        config=config,
        runtime=runtime,
        counts=counts,
        teacher=teacher,
        micro_batches=micro_batches,
    )
    compression = Compression(
        extend_vocabulary(old, vocabulary),
        network,
        steps=steps - boost_steps,
        rates=rates,
        config=config,
        runtime=runtime,
        counts=counts,
        micro_batches=micro_batches,
    )
    return FosterStage(boosting, compression, evaluate)


def extend_vocabulary(model: Conformer, vocabulary: int) -> Conformer:
    """Return a copy with head rows for more tokens; its outputs for old tokens do not change."""
    extended = clone(model)
    extended.shape = replace(model.shape, vocabulary=vocabulary)
    extended.head = extend_head(model.ctc_head, inputs=model.shape.width, outputs=vocabulary)
    return extended


@torch.no_grad()
def extend_head(old: CtcHead, *, inputs: int, outputs: int) -> CtcHead:
    """Return a head whose first rows and columns are the old ones; the others are 0."""
    head = nn.utils.skip_init(
        CtcHead, width=inputs, vocabulary=outputs, name=old.name, device=old.weight.device
    )
    for tensor in head.parameters():
        tensor.zero_()
    head.weight[: old.out_features, : old.in_features] = old.weight
    assert old.bias is not None
    head.bias[: old.out_features] = old.bias
    return head


def effective_weights(
    counts: Int[Tensor, " vocabulary"], *, beta: float
) -> Float[Tensor, " vocabulary"]:
    """Return 1 over each token's effective number (Cui et al., 2019), scaled to a mean of 1.

    The effective number of n occurrences is (1 - beta^n) / (1 - beta). The blank and tokens that
    never occur weigh as little as the most frequent token.
    """
    occurrences = counts.clone()
    occurrences[BLANK] = 0
    # Without this, 0 occurrences would divide by 1 - beta^0 = 0.
    occurrences[occurrences == 0] = occurrences.max().clamp(min=1)
    # beta = 0.97: 1 for one occurrence, 0.114 for 10, 0.031 for 100, before they are scaled.
    weights = (1 - beta) / (1 - beta ** occurrences.double())
    return (weights / weights.mean()).float()
