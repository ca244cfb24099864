"""Small models, masks and speech that tests and benchmarks share."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from core.config import TrialConfig
from core.conformer.axes import Axis
from core.conformer.model import Conformer
from core.conformer.norm import BatchNorm
from core.conformer.shape import BlockShape, Shape
from core.ranks import joined
from core.setting import Place
from core.trial import run

MaskKind = Literal["open", "binary", "soft", "empty_axes", "empty_modules", "all_modules_empty"]
MASK_KINDS: tuple[MaskKind, ...] = (
    "open",
    "binary",
    "soft",
    "empty_axes",
    "empty_modules",
    "all_modules_empty",
)

SHAPE = Shape(
    sub1=6,
    sub2=5,
    width=16,
    position_width=16,
    head_width=4,
    kernel=5,
    vocabulary=7,
    blocks=(
        BlockShape(ff1=12, heads=3, channels=10, ff2=9),
        BlockShape(ff1=8, heads=2, channels=6, ff2=11),
    ),
)


def small_model(seed: int = 0, *, shape: Shape = SHAPE) -> Conformer:
    """A model whose every parameter and statistic is away from its start, so that none hides."""
    torch.manual_seed(seed)
    model = Conformer(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
        model.frontend.mean.normal_()
        model.frontend.deviation.uniform_(0.5, 2.0)
    return model.eval()


def deeper(blocks: int, *, linear_features: int = 0) -> Shape:
    """The small shape with more blocks, sizes alternating.

    With features, attention of every other block from the first runs by them in linear time.
    """
    kinds = (replace(SHAPE.blocks[0], linear_features=linear_features), SHAPE.blocks[1])
    return replace(SHAPE, blocks=tuple(kinds[i % 2] for i in range(blocks)))


def ragged_speech(
    *lengths: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Float[Tensor, "batch mel_frames mels"], Int[Tensor, " batch"]]:
    """Noise of these mel frames, as loud beyond an utterance's end as before."""
    chance = torch.Generator().manual_seed(seed)
    features = torch.randn(len(lengths), max(lengths), 80, generator=chance, dtype=dtype)
    return features, torch.tensor(lengths)


def run_as_rank(config: TrialConfig, place: Place, rank: int, size: int, store: str) -> int:
    """A further rank of a trial, in a process of its own; returns how often it reported."""
    torch.set_num_threads(1)
    with joined(rank=rank, size=size, store=store, device=torch.device("cpu")) as ranks:
        return sum(1 for _ in run(config, place, ranks))


def random_mask(axes: Sequence[Axis], kind: MaskKind, seed: int = 0) -> dict[str, Tensor]:
    """Gates of one kind for all axes; floors are kept."""
    chance = torch.Generator().manual_seed(seed)
    mask = {axis.name: _gates(axis, kind, chance) for axis in axes}
    modules = [axis.name for axis in axes if axis.kind == "module"]
    closed = {"empty_modules": modules[::3], "all_modules_empty": modules}.get(kind, [])
    for name in closed:
        mask[name] = torch.zeros(1)
    if kind == "empty_axes":
        inside = [axis for axis in axes if axis.parent is not None]
        for axis in inside[::2]:
            mask[axis.name] = torch.zeros(axis.size)
    return mask


def _gates(axis: Axis, kind: MaskKind, chance: torch.Generator) -> Tensor:
    if kind == "open" or axis.kind == "module":
        return torch.ones(axis.size)
    is_open = torch.rand(axis.size, generator=chance) < 0.6
    is_open[: max(axis.floor, 1)] = True
    if kind != "soft":
        return is_open.float()
    return is_open * torch.rand(axis.size, generator=chance).clamp(min=0.05)
