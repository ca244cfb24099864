"""Batches that are read ahead are the same batches, also after a resume."""

import pytest
import torch

from core.data.batching import TrainBatches
from core.data.read_ahead import ReadAhead


@pytest.fixture
def make_batches(store):
    return lambda: TrainBatches(store, 4.0, seed=3)


def test_they_are_the_batches_of_the_source_in_their_order(make_batches):
    plain, ahead = make_batches(), ReadAhead(make_batches(), is_pinned=False)

    for _ in range(40):
        expected, actual = next(plain), next(ahead)
        assert actual.ids == expected.ids
        assert torch.equal(actual.features, expected.features)
        assert ahead.state_dict() == plain.state_dict()


@pytest.mark.parametrize("num_read", [0, 1, 5])
def test_a_resumed_run_sees_what_an_uninterrupted_one_does(make_batches, num_read):
    first, whole = ReadAhead(make_batches(), is_pinned=False), make_batches()
    for _ in range(num_read):
        next(first), next(whole)

    resumed = ReadAhead(make_batches(), is_pinned=False)
    next(resumed)  # what was read ahead is forgotten
    resumed.load_state_dict(first.state_dict())

    assert [next(resumed).ids for _ in range(4)] == [next(whole).ids for _ in range(4)]


def test_an_error_of_reading_is_raised_where_its_batch_is_asked_for(store):
    class FailsOnce(TrainBatches):
        reads = 0

        def __next__(self):
            self.reads += 1
            if self.reads == 3:
                raise OSError("the disk is gone")
            return super().__next__()

    ahead = ReadAhead(FailsOnce(store, 4.0, seed=3), is_pinned=False)
    whole = TrainBatches(store, 4.0, seed=3)
    assert [next(ahead).ids for _ in range(2)] == [next(whole).ids for _ in range(2)]

    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)
    assert next(ahead).ids == next(whole).ids
