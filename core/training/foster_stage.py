"""Learning more without forgetting and without growing: our reading of FOSTER for CTC.

Boosting: beside the frozen old model a second encoder, which begins as its copy, learns what the
old one gets wrong, and a fused head hears both. Compression: a model of the old one's shape learns
what both say, by distillation in which rare tokens weigh more (F.-Y. Wang et al., 2022). CTC takes
the place of cross-entropy; the blank, as the most frequent symbol, has the smallest weight.

Shapes: B batch, T frames, M mel bins, D width, V vocabulary, O old vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.config.trial import BoostingConfig, RuntimeConfig
from core.conformer.model import Conformer, Output
from core.data.batching import Batch
from core.pruning.extraction import clone
from core.report import Report, Stage
from core.training.distillation import ctc_loss, logit_loss
from core.training.loop import Rates, autocast, optimizer_step
from core.training.optimizers import primal

BLANK = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class BoostedOutputs:
    """What each part of a boosted model says of the same speech."""

    fused: Output
    new: Output
    """The second encoder through a head of its own, for which it is trained, too."""
    old: Output
    """Over the old vocabulary."""


class Boosted(nn.Module):
    """The old model, which nothing changes, a second encoder, and a head that hears both."""

    def __init__(self, old: Conformer, vocabulary: int) -> None:
        super().__init__()
        self.old = clone(old).requires_grad_(requires_grad=False)
        self.old.set_dropout(0.0)
        self.new = with_vocabulary(old, vocabulary)
        self.head = extend_head(old.head, inputs=2 * old.shape.width, outputs=vocabulary)

    def forward(
        self, features: Float[Tensor, "batch mel_frames mels"], num_frames: Int[Tensor, " batch"]
    ) -> Output:
        return self.voices(features, num_frames).fused

    def voices(
        self, features: Float[Tensor, "batch mel_frames mels"], num_frames: Int[Tensor, " batch"]
    ) -> BoostedOutputs:
        with torch.no_grad():
            old = self.old(features, num_frames)
        new = self.new(features, num_frames)
        both = torch.cat((old.hidden[-1], new.hidden[-1]), dim=-1)  # (B, T, 2 D)
        return BoostedOutputs(fused=replace(old, logits=self.head(both)), new=new, old=old)

    def train(self, mode: bool = True) -> "Boosted":  # noqa: FBT001, FBT002 - torch's signature
        """The old model stays in evaluation mode, so that its statistics stay, too."""
        super().train(mode)
        self.old.eval()
        return self


class Boosting:
    """The second encoder and the fused head, trained."""

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
        """`teacher` is who says what old tokens should be; by default the old model itself."""
        self.network, self.steps, self.rates, self.config = network, steps, rates, config
        self.precision, self.micro_batches = runtime.precision, micro_batches
        self.teacher = teacher
        self.class_weights = effective_weights(counts, beta=config.boost_beta)
        learning = [*network.new.parameters(), *network.head.parameters()]
        self.primal = primal(learning, learning_rate=rates.peak, weight_decay=rates.weight_decay)

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
        device = batch.features.device
        with autocast(device, self.precision):
            heard = self.network.voices(batch.features, batch.num_frames)
            wanted = heard.old.logits
            if self.teacher is not None:
                with torch.no_grad():
                    wanted = self.teacher(batch.features, batch.num_frames).logits
            fused = heard.fused.logits
            # Divided, the logits of rare tokens must grow by their weight to be as likely.
            divided = replace(heard.fused, logits=fused / self.class_weights.to(device))
            tasks = [
                ctc_loss(output, batch.tokens, batch.num_tokens) for output in (divided, heard.new)
            ]
            logit = logit_loss(
                fused[..., : wanted.shape[-1]],
                wanted,
                heard.fused.is_frame,
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
    """One model of the old one's shape, trained by what a boosted one says."""

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
        self.steps, self.rates, self.config = steps, rates, config
        self.precision, self.micro_batches = runtime.precision, micro_batches
        self.class_weights = effective_weights(counts, beta=config.compress_beta)
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
        device, config = batch.features.device, self.config
        with autocast(device, self.precision):
            with torch.no_grad():
                wanted = self.network(batch.features, batch.num_frames)
            output = self.model(batch.features, batch.num_frames)
            task = ctc_loss(output, batch.tokens, batch.num_tokens)
            logit = logit_loss(
                output.logits,
                wanted.logits,
                wanted.is_frame,
                config.temperature,
                class_weights=self.class_weights.to(device),
            )
        return {"total": config.task_weight * task + logit, "task": task, "logit": logit}

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "primal": self.primal.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.primal.load_state_dict(state["primal"])


class FosterStage:
    """Boosting, then compression, as one stage that `fit` walks."""

    stage: Stage = "tune"

    def __init__(
        self,
        boosting: Boosting,
        compression: Compression,
        judge: Callable[[Boosted | Conformer], Report],
    ) -> None:
        """`judge` measures the boosted model, and once that is compressed the small one."""
        self.boosting, self.compression, self.judge = boosting, compression, judge
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
        is_boosting = self.done <= self.boosting.steps
        return self.judge(self.boosting.network if is_boosting else self.model)

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
    judge: Callable[[Boosted | Conformer], Report],
    teacher: Conformer | None = None,
    micro_batches: int = 1,
) -> FosterStage:
    """Both stages from one old model, whose shape the last one has but for its vocabulary.

    Args:
        old: what is to learn more; it is left as it is.
        vocabulary: tokens there are to be, the old ones first.
        steps: of both stages together.
        rates: of each stage.
        config: how much is boosted, and what weighs how much.
        runtime: where and how it computes.
        counts: how often each token is said in what it learns from.
        judge: measures the boosted model, and then the small one.
        teacher: who says what old tokens should be while boosting; by default `old`.
        micro_batches: parts in which a batch passes.
    """
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
        with_vocabulary(old, vocabulary),
        network,
        steps=steps - boost_steps,
        rates=rates,
        config=config,
        runtime=runtime,
        counts=counts,
        micro_batches=micro_batches,
    )
    return FosterStage(boosting, compression, judge)


def with_vocabulary(model: Conformer, vocabulary: int) -> Conformer:
    """A copy whose head has rows for more tokens; all else, and what it says of old ones, stays."""
    grown = clone(model)
    grown.shape = replace(model.shape, vocabulary=vocabulary)
    grown.head = extend_head(model.head, inputs=model.shape.width, outputs=vocabulary)
    return grown


@torch.no_grad()
def extend_head(old: nn.Linear, *, inputs: int, outputs: int) -> nn.Linear:
    """A head whose first rows and columns are an old one's; the others are 0."""
    head = nn.utils.skip_init(nn.Linear, inputs, outputs, device=old.weight.device)
    for tensor in head.parameters():
        tensor.zero_()
    head.weight[: old.out_features, : old.in_features] = old.weight
    assert old.bias is not None
    head.bias[: old.out_features] = old.bias
    return head


def effective_weights(
    counts: Int[Tensor, " vocabulary"], *, beta: float
) -> Float[Tensor, " vocabulary"]:
    """One over each token's effective number (Cui et al., 2019), the mean over tokens being 1.

    The blank weighs as little as the most frequent token, and so does what is never said: there is
    nothing of it to be balanced.
    """
    seen = counts.clone()
    seen[BLANK] = 0
    seen[seen == 0] = seen.max().clamp(min=1)
    weights = (1 - beta) / (1 - beta ** seen.double())
    return (weights / weights.mean()).float()
