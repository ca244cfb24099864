"""Our reading of FOSTER (F.-Y. Wang et al., ECCV 2022) as a recovery of what pruning took away.

Units go by magnitude. A first share of the tuning's steps trains a second small encoder beside the
pruned one towards the teacher, the rest compress both into the pruned shape again, with CTC on the
transcripts beside the distillation, which FOSTER has not.
"""

import torch
from torch import Tensor

from core.conformer.model import Conformer
from core.methods.magnitude import Magnitude
from core.pruning.space import Choice
from core.report import Report
from core.training.boosting import Boosted, Fostering, fostering
from core.training.method import Workbench, tuning_rates

KEYS = (
    "boosting.share",
    "boosting.old_weight",
    "boosting.temperature",
    "boosting.boost_beta",
    "boosting.compress_beta",
)


class Foster(Magnitude):
    lives_by_tuning = True

    def tuning(
        self, model: Conformer, choice: Choice, bench: Workbench, *, steps: int
    ) -> Fostering:
        del choice
        config, vocabulary = bench.config, model.shape.vocabulary
        # Nothing here is to be kept from being forgotten: transcripts count as in any tuning.
        task_weight = config.distillation.task_weight
        boosting = config.boosting.model_copy(update={"task_weight": task_weight})

        def judged(heard: Boosted | Conformer) -> Report:
            # Two encoders are only on the way: what would be extracted now is the small model.
            del heard
            return bench.judge.report(stage.model, "tune")

        stage = fostering(
            model,
            vocabulary=vocabulary,
            steps=steps,
            rates=tuning_rates(config),
            config=boosting,
            runtime=config.runtime,
            counts=_token_counts(bench, vocabulary),
            judge=judged,
            teacher=bench.distillation.teacher,
            micro_batches=config.training.micro_batches,
        )
        return stage


def _token_counts(bench: Workbench, vocabulary: int) -> Tensor:
    """How often each token is said in the calibration batches."""
    said = [
        batch.tokens[i, :length]
        for batch in bench.labelled
        for i, length in enumerate(batch.num_tokens.tolist())
    ]
    return torch.bincount(torch.cat(said).cpu(), minlength=vocabulary)


METHOD = Foster()
