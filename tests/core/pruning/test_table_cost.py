"""What sensitivity tables are said to take, before they are computed."""

from dataclasses import replace

import pytest

from core.pruning.calibration import prunable_consumers
from core.pruning.space import Space
from core.pruning.table_cost import (
    elimination_cost,
    estimate_table_bytes,
    estimate_table_seconds,
    measured_passes,
)
from core.testing import SHAPE, small_model

AXES = ["frontend", "width", "head", "inner", "channel"]


def space_of(shape=SHAPE):
    return Space.of(small_model(shape=shape), AXES, 4.0)


def test_the_cost_of_an_axis_is_the_cube_of_what_its_readers_read():
    space = space_of()
    axes = {axis.name: axis for axis in space.units}
    readers = [piece for piece in axes["width"].slices if piece.dim == 1]

    assert elimination_cost(space, axes["blocks.0.ff1.inner"]) == 12**3
    assert elimination_cost(space, axes["blocks.0.attention.head"]) == (3 * 4) ** 3
    assert elimination_cost(space, axes["width"]) == len(readers) * 16**3


def test_the_memory_is_that_of_the_width_or_of_the_largest_consumer():
    """Of 200 blocks 801 norms read a width of 16; an inner size of 4,000 takes more than these."""
    wide = replace(SHAPE, blocks=(replace(SHAPE.blocks[0], ff1=4000), SHAPE.blocks[1]))

    deep = replace(SHAPE, blocks=SHAPE.blocks[:1] * 200)
    of_width = 8 * 2 * (4 * 200 + 1) * 17**2
    assert of_width < estimate_table_bytes(space_of(deep)) < 3 * of_width  # and consumers' outputs
    assert estimate_table_bytes(space_of(wide)) >= 8 * 4 * 4001**2


def test_more_inputs_are_said_to_take_longer():
    """Both times are of the same elimination, so their ratio is that of the costs, about."""
    wide = replace(SHAPE, blocks=(replace(SHAPE.blocks[0], ff1=1200), SHAPE.blocks[1]))

    small, large = (estimate_table_seconds(space_of(shape)) for shape in (SHAPE, wide))

    assert 0 < small < large / 100


def test_each_level_is_a_pass_from_the_axis_s_part_on():
    """Of two blocks behind the front end, a level of the last block passes a third of the parts."""
    last = [axis for axis in space_of().units if axis.name == "blocks.1.ff2.inner"]
    front = [axis for axis in space_of().units if axis.kind == "frontend"][-1:]

    def passes(axes, **what):
        space = replace(space_of(), prunable=tuple(axes))
        assert prunable_consumers(space)
        return measured_passes(space, 3, **what)

    assert passes(last, consumers_too=True) == pytest.approx(3 / 3)
    assert passes(front, consumers_too=True) == pytest.approx(3)
    assert passes(last, consumers_too=False) == 0


def test_whole_modules_are_measured_with_either_kind_of_tables():
    """Four modules of each block, of which those of the first pass two of three parts."""
    space = Space.of(small_model(), ["module"], 4.0)

    assert len(space.units) == 8
    for consumers_too in (False, True):
        passes = measured_passes(space, 8, consumers_too=consumers_too)
        assert passes == pytest.approx(4 * 2 / 3 + 4 / 3)
