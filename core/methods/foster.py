"""FOSTER (F.-Y. Wang et al., ECCV 2022), our reading: a second encoder helps a pruned one recover.

Units are removed by magnitude. In the first part of fine-tuning, a second small encoder is trained
in addition to the pruned one, so that both together match the teacher. In the rest, both are
compressed into the shape of the pruned encoder. The loss is distillation and CTC on the
transcripts; FOSTER has no CTC.
"""

import torch
from torch import Tensor

from core.config.settings import MethodSettings
from core.conformer.model import Conformer
from core.methods.magnitude import Magnitude
from core.pruning.space import Choice
from core.report import Report
from core.training.foster_stage import Boosted, FosterStage, make_foster_stage
from core.training.method import MethodContext, tuning_rates


class Settings(MethodSettings):
    """Settings of `foster`: they stand in `[trial.boosting]`, which `adapt` reads, too."""

    reads = (
        "boosting.share",
        "boosting.old_weight",
        "boosting.temperature",
        "boosting.boost_beta",
        "boosting.compress_beta",
    )


class Foster(Magnitude):
    lives_by_tuning = True

    def tuning(
        self, model: Conformer, choice: Choice, ctx: MethodContext, *, steps: int
    ) -> FosterStage:
        """Returns the stage that boosts the extracted model and compresses it again.

        Args:
            model: extracted.
            choice: not used, as the layers of the teacher are not matched.
            ctx: unrestricted.
            steps: of both parts together.
        """
        del choice
        config, vocabulary = ctx.config, model.shape.vocabulary
        # A trial has no older skill to protect, so the transcripts count as in any tuning.
        task_weight = config.distillation.task_weight
        boosting = config.boosting.model_copy(update={"task_weight": task_weight})

        # It names `stage`, which is bound below, before the first evaluation.
        def evaluate(trained: Boosted | Conformer) -> Report:
            # A boosted model is not a result: what would be extracted now is the small one.
            del trained
            return ctx.evaluator.report(stage.model, "tune")

        stage = make_foster_stage(
            model,
            vocabulary=vocabulary,
            steps=steps,
            rates=tuning_rates(config),
            config=boosting,
            runtime=config.runtime,
            counts=_token_counts(ctx, vocabulary),
            evaluate=evaluate,
            teacher=ctx.distillation.teacher,
            micro_batches=config.training.parts,
        )
        return stage


def _token_counts(ctx: MethodContext, vocabulary: int) -> Tensor:
    """Returns the number of times that each token occurs in the calibration batches."""
    tokens = [
        batch.tokens[i, :length]
        for batch in ctx.labeled
        for i, length in enumerate(batch.num_tokens.tolist())
    ]
    return torch.bincount(torch.cat(tokens).cpu(), minlength=vocabulary)


METHOD = Foster()
