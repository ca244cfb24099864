"""What waits for a device is counted where it is asked for."""

import torch

from benchmarks.speed.waits import WaitCounter
from core.decoders.places import neighbouring_places


def test_what_the_host_reads_is_counted_at_its_line_in_core():
    visited, frames = torch.tensor([[0, 0, 0], [0, 1, 0]]), torch.tensor([2])

    with WaitCounter() as counter:
        neighbouring_places(visited, [[3]], frames)

    assert counter.places.total() == 2  # booleans as an index, and `unique`
    assert all(place.startswith("core/decoders/places.py:") for place in counter.places)


def test_arithmetic_waits_for_nothing_and_other_places_do_not_count():
    x = torch.arange(6.0)

    with WaitCounter() as counter:
        (x * 2 + x[torch.tensor([1, 2])].sum()).softmax(0)
        x[x > 2].sum().item()

    assert counter.places.total() == 0
