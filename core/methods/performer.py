"""Performers in Conformers (arXiv 2011.04196), our reading: attention in linear time.

We know only the abstract of the paper. The attention of the teacher is replaced by attention in
linear time: in all blocks, in chosen ones, or in a number of blocks, where the output of the model
changes least. All weights stay. Then units are removed by magnitude. The budget is a share of the
model before the replacement. Fine-tuning repairs both changes.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor

from core.config.base import ConfigError
from core.config.settings import MethodSettings
from core.config.trial import TrialConfig
from core.conformer.model import Conformer
from core.methods.magnitude import Magnitude
from core.pruning.calibration import Calibration
from core.pruning.extraction import clone


class Settings(MethodSettings):
    """Settings of `performer`."""

    linear_blocks: int | list[int] | Literal["all"] = "all"
    """Blocks whose attention runs in linear time: all, those of these numbers from 0 on, or so
    many, where it shifts the model's output least."""
    linear_features: int = Field(64, ge=2, le=4096, multiple_of=2)
    """Random features of the linear attention, an even number: more are nearer to softmax and cost
    more. 64 cost less than softmax in utterances from 2 to 4 s on, by the model's size, and 128
    from 7 to 9 s on (`benchmarks/crossover.py`)."""

    @field_validator("linear_blocks", mode="wrap")
    @classmethod
    def _blocks_are_blocks(
        cls, value: Any, read: Callable[[Any], Any]
    ) -> int | list[int] | Literal["all"]:
        """Returns the value, or raises one line where pydantic would write one for each type."""
        numbers = value if isinstance(value, list) else [value]
        are_whole = all(type(number) is int and number >= 0 for number in numbers)
        is_list = isinstance(value, list) and 0 < len(value) == len(set(map(str, value)))
        is_count = type(value) is int and value > 0
        if not (value == "all" or (are_whole and (is_list or is_count))):
            raise ValueError(
                '`pruning.performer.linear_blocks` must be "all", a number of blocks from 1, or a'
                f" list of different blocks' numbers from 0, but is {value!r} instead"
            )
        return read(value)


class Performer(Magnitude):
    needs = frozenset({"audio"})

    def prepare_model(
        self, model: Conformer, config: TrialConfig, speech: Calibration
    ) -> Conformer:
        """Returns the model with attention in linear time in the configured blocks.

        Raises:
            ConfigError: if `linear_blocks` names or counts more blocks than have attention.
        """
        settings = config.pruning.settings(Settings)
        features, linear_blocks = settings.linear_features, settings.linear_blocks
        able = [i for i, block in enumerate(model.typed_blocks()) if block.attention is not None]
        blocks = able if linear_blocks == "all" else linear_blocks
        number = blocks if isinstance(blocks, int) else len(blocks)
        if number > len(able) or (isinstance(blocks, list) and not set(blocks) <= set(able)):
            raise ConfigError(
                f"`pruning.performer.linear_blocks` must be within the {len(able)} blocks that have"
                f" attention, {able}, but is {linear_blocks} instead"
            )
        if isinstance(blocks, int):
            moved = shifts(model, able, features, config.seed, speech)
            blocks = sorted(sorted(able, key=lambda i: moved[i])[:number])
        return with_linear_attention(model, blocks, features, config.seed)


def with_linear_attention(
    model: Conformer, blocks: Sequence[int], features: int, seed: int
) -> Conformer:
    """A copy whose attention runs in linear time in these blocks, by directions of this seed.

    Args:
        model: is not changed.
        blocks: numbers of blocks that have attention.
        features: random features of a head, an even number.
        seed: of the directions; a block's are its own, whichever others are swapped.
    """
    new, sizes = clone(model), list(model.shape.blocks)
    for i in blocks:
        attention = new.typed_blocks()[i].attention
        assert attention is not None, "only attention that is there can be swapped"
        with torch.random.fork_rng(devices=[]):
            # Seed 1 draws for block 0 with 1, for block 2 with 131,073.
            torch.manual_seed(seed + 2**16 * i)
            attention.linearize(features)
        sizes[i] = replace(sizes[i], linear_features=features)
    new.shape = replace(model.shape, blocks=tuple(sizes))
    return new


@torch.no_grad()
def shifts(
    model: Conformer, blocks: Sequence[int], features: int, seed: int, speech: Calibration
) -> dict[int, float]:
    """Returns the mean square shift of the last hidden state for each block, swapped alone.

    Args:
        model: is not changed.
        blocks: numbers of blocks that have attention.
        features: random features of a head, an even number.
        seed: of their directions.
        speech: on which the shift is measured.
    """
    before = _last(model, speech)

    def shift_by(i: int) -> float:
        after = _last(with_linear_attention(model, [i], features, seed), speech)
        return float((after - before).square().mean())

    # One pass over the speech for each block, and one for the model as it is.
    return {i: shift_by(i) for i in blocks}


def _last(model: Conformer, speech: Calibration) -> Float[Tensor, "frames width"]:
    outputs = (model.eval()(*batch) for batch in speech)
    return torch.cat([output.hidden[-1][output.is_frame] for output in outputs])


METHOD = Performer()
