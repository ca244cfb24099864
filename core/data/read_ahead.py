"""Reading ahead: the next batch is read in a thread while a device computes the one before."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from core.data.batching import Batch, TrainBatches

ReadBatch = tuple[Batch, dict[str, int]]
"""A batch, and where its source stood after it."""


class ReadAhead:
    """The batches of a source, one read ahead, in pinned memory if that is asked for.

    Its state is that after the batch given out last, so a resumed run sees the same batches whether
    or not one was read ahead.
    """

    def __init__(self, batches: TrainBatches, *, is_pinned: bool) -> None:
        """Begin where the source stands; only this object may use it from then on."""
        self._batches, self._is_pinned = batches, is_pinned
        self._state = batches.state_dict()
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
        self._pending: Future[ReadBatch] | None = None

    def __iter__(self) -> "ReadAhead":
        return self

    def __next__(self) -> Batch:
        pending = self._pending or self._reader.submit(self._read)
        # Forgotten first: after an error the batch is asked for again, not the error.
        self._pending = None
        batch, self._state = pending.result()
        self._pending = self._reader.submit(self._read)
        return batch

    def state_dict(self) -> dict[str, int]:
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        if self._pending is not None:
            self._pending.exception()  # waits: the source must stand still
            self._pending = None
        self._batches.load_state_dict(state)
        self._state = dict(state)

    def _read(self) -> ReadBatch:
        batch = next(self._batches)
        if self._is_pinned:
            features, tokens = batch.features.pin_memory(), batch.tokens.pin_memory()
            batch = replace(batch, features=features, tokens=tokens)
        return batch, self._batches.state_dict()
