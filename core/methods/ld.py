"""LD-Pruner (arXiv 2404.11936), our reading: a unit is worth how far the output shifts without it.

The output is the encoder's distribution over tokens on real frames. Groups of units are closed one
at a time, and the mean and the standard deviation over frames are compared with those of the whole
model:

    score = |mean - mean'| + |deviation - deviation'|

No transcript is read. Frames on which the whole model says blank and frames on which it says a
token are two sets with their own means. Otherwise silence would decide everything.

Shapes: B batch, N frames of a set, V vocabulary.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from core.config.settings import MethodSettings
from core.conformer.masking import Folded, gated_forward
from core.conformer.model import Conformer
from core.methods.magnitude import magnitudes
from core.pruning.ablation import groups, identity_fold, measure_edits, spread_over_units
from core.pruning.calibration import Calibration, comparison_places
from core.pruning.scoring import divide_by_cost
from core.training.loop import Trainable
from core.training.method import Method, MethodContext, SearchResult


class Settings(MethodSettings):
    """Settings of `ld`."""

    groups: int = Field(8, ge=1, le=65_536)
    """Number of groups into which the units of an axis are put, closed one group at a time."""


class LatentShift(Method):
    needs = frozenset({"audio"})
    default_repair = "sequential"

    def search_result(self, ctx: MethodContext, search: Trainable | None) -> SearchResult:
        del search
        config, axes = ctx.config.pruning, list(ctx.space.units)
        edits = groups(axes, magnitudes(ctx.student, axes), count=config.settings(Settings).groups)
        moments_of_whole = FeatureMoments(ctx.student, ctx.speech)
        shifts = measure_edits(ctx.student, edits, moments_of_whole.shift)
        scores = spread_over_units(axes, [(edit, float(shift)) for edit, shift in shifts])
        return SearchResult(scores=divide_by_cost(ctx.space, scores, config.resource), reference={})


class FeatureMoments:
    """Moments of the output on some speech, and how far an edit of the model shifts them."""

    def __init__(self, model: Conformer, speech: Calibration) -> None:
        self._model = model.eval()
        self._speech = speech
        # Where a transducer is compared: places of the whole model's lattice.
        self._places = comparison_places(self._model, speech)
        whole = identity_fold(model)
        with torch.no_grad():
            latents = list(self._latents(whole))
        # The sets are those of the whole model, also when edits are measured.
        self._sets = [latent[:, : model.vocabulary].argmax(-1) == 0 for latent in latents]
        self._means = self._moments(latents)

    @torch.no_grad()
    def shift(self, folded: Folded) -> Float[Tensor, ""]:
        moments = self._moments(self._latents(folded))
        return torch.stack(
            [(a - b).norm() for a, b in zip(moments, self._means, strict=True)]
        ).sum()

    def _latents(self, folded: Folded) -> Iterable[Float[Tensor, "frames vocabulary"]]:
        for number, (features, num_frames) in enumerate(self._speech):
            places = self._places[number] if self._places else None
            yield gated_forward(
                self._model, features, num_frames, folded, places=places
            ).log_probs()

    def _moments(
        self, latents: Iterable[Float[Tensor, "_ vocabulary"]]
    ) -> list[Float[Tensor, " vocabulary"]]:
        """Returns mean and deviation over the frames of each set; 0 for a set without frames."""
        parts = list(zip(latents, self._sets, strict=True))
        return [
            moment
            for is_blank in (True, False)
            # Four vectors (V,): mean and deviation on blank frames, then on the others.
            for moment in moments(torch.cat([latent[s == is_blank] for latent, s in parts]))
        ]


def moments(
    frames: Float[Tensor, "_ vocabulary"],
) -> tuple[Float[Tensor, " vocabulary"], Float[Tensor, " vocabulary"]]:
    """Returns mean and deviation over frames, in fp64; 0 if there are none."""
    count = max(1, len(frames))
    mean = frames.double().sum(0) / count
    return mean, ((frames.double() - mean).square().sum(0) / count).sqrt()


METHOD = LatentShift()
