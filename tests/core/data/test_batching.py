import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.data.batching import TrainBatches, dev_batches, plan_epoch, read_batch

lengths = st.lists(st.integers(0, 3000), min_size=1, max_size=60).map(np.array)


def padding(batches, num_frames):
    padded = sum(len(batch) * num_frames[batch].max() for batch in batches)
    return 1 - num_frames.sum() / padded


@given(lengths, st.floats(1, 60), st.integers(0, 99), st.integers(0, 9))
def test_an_epoch_holds_every_utterance_once_in_batches_of_bounded_size(
    num_frames, batch_seconds, seed, epoch
):
    batches = plan_epoch(num_frames, batch_seconds, seed, epoch)

    assert sorted(i for batch in batches for i in batch) == list(range(len(num_frames)))
    for batch in batches:
        size = len(batch) * num_frames[batch].max() / 100
        assert size <= batch_seconds or len(batch) == 1


def test_the_order_depends_on_seed_and_epoch_alone():
    num_frames = np.random.default_rng(0).integers(100, 900, 200)

    def plan(seed, epoch):
        return plan_epoch(num_frames, 30.0, seed, epoch)

    assert plan(0, 0) == plan(0, 0)
    assert plan(0, 0) != plan(1, 0)
    assert plan(0, 0) != plan(0, 1)
    assert sorted(map(sorted, plan(0, 0))) != sorted(map(sorted, plan(0, 1)))


@pytest.mark.parametrize("batch_seconds", [30.0, 60.0, 120.0])
def test_padding_is_under_a_tenth(batch_seconds):
    # Lengths spread as in read speech: mostly 2 to 17 s.
    num_frames = np.random.default_rng(0).gamma(4, 250, 3000).astype(int).clip(100, 3000)

    batches = plan_epoch(num_frames, batch_seconds, seed=0, epoch=0)

    assert padding(batches, num_frames) < 0.1


def test_spoken_commands_are_padded_by_under_a_tenth(store):
    batches = plan_epoch(store.num_frames, 10.0, seed=0, epoch=0)

    assert padding(batches, store.num_frames) < 0.1


def equal(a, b):
    torch.testing.assert_close(a.features, b.features, atol=0, rtol=0)
    torch.testing.assert_close(a.tokens, b.tokens, atol=0, rtol=0)
    return a.ids == b.ids


@pytest.mark.parametrize("num_before", [0, 3, 17, 40])
def test_resumed_batches_are_those_of_an_uninterrupted_run(store, num_before):
    uninterrupted = TrainBatches(store, 20.0, seed=5)
    for _ in range(num_before):
        next(uninterrupted)
    state = uninterrupted.state_dict()

    resumed = TrainBatches(store, 20.0, seed=5)
    resumed.load_state_dict(state)

    assert all(equal(next(resumed), next(uninterrupted)) for _ in range(25))
    assert state == {"epoch": state["epoch"], "position": state["position"]}


def test_a_batch_holds_its_utterances_and_nothing_but_padding(store):
    batch = next(TrainBatches(store, 20.0, seed=0)).to("cpu")

    assert batch.features.dtype == torch.float32
    assert batch.seconds == sum(store.seconds[list(batch.indices)])
    for row, i in enumerate(batch.indices):
        item = store.item(i)
        length, num_tokens = batch.num_frames[row], batch.num_tokens[row]
        torch.testing.assert_close(batch.features[row, :length], item.features, atol=0, rtol=0)
        torch.testing.assert_close(batch.tokens[row, :num_tokens], item.tokens, atol=0, rtol=0)
        assert batch.features[row, length:].abs().sum() == 0
        assert batch.tokens[row, num_tokens:].sum() == 0
        assert (batch.ids[row], batch.texts[row]) == (item.id, item.text)


def test_dev_batches_are_sorted_and_lead_back_to_the_store(store):
    batches = list(dev_batches(store, 15.0))

    assert sorted(i for batch in batches for i in batch.indices) == list(range(len(store)))
    frames = torch.cat([batch.num_frames for batch in batches])
    assert (frames.diff() >= 0).all()
    assert [store.ids[i] for batch in batches for i in batch.indices] == [
        name for batch in batches for name in batch.ids
    ]


def test_a_utterance_longer_than_a_batch_is_a_batch_alone(store):
    assert all(len(batch.ids) == 1 for batch in dev_batches(store, 0.01))
    assert read_batch(store, [0]).ids == (store.ids[0],)


@pytest.mark.parametrize("count", [1, 2, 3, 100])
def test_the_parts_of_a_batch_are_the_batch(store, count):
    batch = next(TrainBatches(store, 20.0, seed=0))
    parts = batch.parts(count)

    assert len(parts) <= min(count, len(batch.ids))
    assert tuple(name for part in parts for name in part.ids) == batch.ids
    assert torch.equal(torch.cat([part.features for part in parts]), batch.features)
    assert torch.equal(torch.cat([part.tokens for part in parts]), batch.tokens)
    assert sum(part.seconds for part in parts) == pytest.approx(batch.seconds)
