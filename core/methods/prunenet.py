"""PruneNet (arXiv 2501.15296), our reading: a policy that reads weights and no data.

The policy reads the rows of the first matrix W of a feed-forward module and gives each row a
probability of staying. It is trained by REINFORCE, with several draws of one matrix compared with
each other. Its reward is high if the singular values of the rows that stay are distributed as those
of the whole matrix (the inverse of the Kolmogorov-Smirnov distance). One policy serves all matrices
of one shape. The final choice is not drawn: it is the order of the policy's probabilities. All axes
lose the same share, and units outside feed-forward modules are removed by magnitude.

Shapes: N inner units, D width.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from scipy.stats import ks_2samp
from torch import Tensor, nn

from core.conformer.masking import named_tensors
from core.methods.magnitude import magnitudes
from core.pruning.scoring import rank_within_axis
from core.training.loop import Trainable
from core.training.method import Method, MethodContext, SearchResult

EPISODES = 50
DRAWS = 8
RATE = 1e-2
DISCOUNT = 0.99
"""Of the reward, a layer: what is cut early changes what comes later."""
LEAST_DISTANCE = 1e-3
"""Two spectra that are no further apart are the same."""


class PruneNet(Method):
    def search_result(self, ctx: MethodContext, search: Trainable | None) -> SearchResult:
        del search
        axes, tensors = list(ctx.space.units), named_tensors(ctx.student)
        scores = magnitudes(ctx.student, axes)
        by_shape: dict[torch.Size, dict[str, Tensor]] = {}
        for axis in axes:
            if axis.kind == "inner":
                weight = tensors[axis.slices[0].tensor].detach().float().cpu()
                by_shape.setdefault(weight.shape, {})[axis.name] = weight
        for matrices in by_shape.values():
            policy = train_policy(
                list(matrices.values()), keep=1 - ctx.target, seed=ctx.config.seed
            )
            with torch.no_grad():
                scores |= {name: policy(weight) for name, weight in matrices.items()}
        return SearchResult(scores=rank_within_axis(scores), reference={})


class Policy(nn.Module):
    """A network that gives each row of a matrix a logit of staying."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.mix = nn.Linear(columns, rows)
        self.read = nn.Parameter(torch.zeros(rows))  # at the start all rows are equal

    def forward(self, weight: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
        # A row and its negative have the same spectrum, so the policy must not see signs.
        return self.mix(weight.abs()) @ self.read


def train_policy(
    matrices: Sequence[Float[Tensor, "N D"]], *, keep: float, seed: int, episodes: int = EPISODES
) -> Policy:
    """Returns a policy trained on matrices of one shape, of which a share of the rows stays.

    Args:
        matrices: first matrices of feed-forward modules, all of one shape.
        keep: share of the rows that stays, from 0 to 1.
        seed: seed of the initial weights and of the draws.
        episodes: passes over all matrices.
    """
    rows, columns = matrices[0].shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = Policy(rows, columns)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=RATE)
    count = max(1, round(keep * rows))
    for _ in range(episodes):
        for layer, weight in enumerate(matrices):
            logits = policy(weight)
            chosen = [_draw_rows(logits.detach(), count, generator) for _ in range(DRAWS)]
            gains = torch.tensor([reward(weight, rows_drawn) for rows_drawn in chosen])
            # Each draw against the others: what they have in common teaches nothing.
            # Equal to the gain minus the mean of the other draws': with gains 4 and 0 it is 4 and
            # -4.
            ahead = (gains - gains.mean()) * DRAWS / (DRAWS - 1)
            # log(p_i / sum of p), the probability of a row in a single draw.
            share = (logits.sigmoid() + 1e-9).log().log_softmax(0)
            log_probabilities = torch.stack([share[rows_drawn].sum() for rows_drawn in chosen])
            optimizer.zero_grad(set_to_none=True)
            (-(DISCOUNT**layer) * (ahead * log_probabilities).mean()).backward()
            optimizer.step()
    return policy


def _draw_rows(
    logits: Float[Tensor, " N"], count: int, generator: torch.Generator
) -> Int[Tensor, " drawn"]:
    """Returns rows drawn by binary-concrete samples of the policy, mostly those of high logits."""
    # Logistic noise: a row of logit 2 beats one of logit 0 often, not always.
    noise = torch.logit(torch.rand(len(logits), generator=generator).clamp(1e-6, 1 - 1e-6))
    return torch.multinomial(torch.sigmoid(logits + noise) + 1e-9, count, generator=generator)


def reward(weight: Float[Tensor, "N D"], rows: Int[Tensor, " _"]) -> float:
    """Returns the likeness of the spectra of a matrix and of some of its rows."""
    whole, part = torch.linalg.svdvals(weight), torch.linalg.svdvals(weight[rows])
    return 1 / max(LEAST_DISTANCE, float(ks_2samp(whole.numpy(), part.numpy()).statistic))


METHOD = PruneNet()
