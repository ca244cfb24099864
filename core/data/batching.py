"""Batches of like lengths, in an order that is a pure function of seed and epoch.

Shapes: B batch, T frames, M mel bins, U tokens.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from core.config.augmentation import AugmentConfig
from core.data.feature_cache import FeatureStore, Item
from core.data.recording_conditions import Condition, apply_condition, draw_conditions
from core.features.kaldi import FRAMES_PER_SECOND
from core.features.spec import FrontendSpec

_JITTER = 0.05  # lengths are sorted with so much noise, so that epochs differ in who meets whom


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Utterances padded to the longest; padding is 0 in features and tokens."""

    features: Float[Tensor, "batch frames mels"]
    num_frames: Int[Tensor, " batch"]
    tokens: Int[Tensor, "batch tokens"]
    num_tokens: Int[Tensor, " batch"]
    seconds: float
    """Speech in it, padding not counted."""
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    indices: tuple[int, ...]
    """Each utterance's number in its store."""

    def to(self, device: torch.device | str) -> "Batch":
        """Return features and tokens on a device; lengths stay on the host.

        What is read of lengths on the host is known without waiting for the device.
        """
        return replace(
            self,
            features=self.features.to(device, non_blocking=True),
            tokens=self.tokens.to(device, non_blocking=True),
        )

    def parts(self, count: int) -> list["Batch"]:
        """The same utterances in at most so many batches, all but the last of one size."""
        if count == 1:
            return [self]
        # 7 utterances in 3 parts: 3, 3 and 1. 5 in 4 parts: 2, 2 and 1, a part less.
        size = math.ceil(len(self.ids) / count)
        starts = range(0, len(self.ids), size)
        return [self._part(slice(start, start + size)) for start in starts]

    def share(self, rank: int, size: int) -> "Batch | None":
        """One rank's utterances of so many ranks'; None where there are too few for all."""
        if size == 1:
            return self
        # 5 utterances of 3 ranks: 1, 2 and 2. 1 utterance of 2 ranks: none and 1.
        some = slice(len(self.ids) * rank // size, len(self.ids) * (rank + 1) // size)
        return self._part(some) if some.start < some.stop else None

    def _part(self, some: slice) -> "Batch":
        ids = self.ids[some]
        return Batch(
            features=self.features[some],
            num_frames=self.num_frames[some],
            tokens=self.tokens[some],
            num_tokens=self.num_tokens[some],
            # By count: the seconds of all parts add up to those of the batch.
            seconds=self.seconds * len(ids) / len(self.ids),
            ids=ids,
            texts=self.texts[some],
            indices=self.indices[some],
        )


# `conditions` has an entry for each utterance of the store, not of the batch. `F.pad` takes pairs
# from the last axis backwards: no mels are added, and frames at the end alone.
def read_batch(
    store: FeatureStore, indices: list[int], conditions: Sequence[Condition] | None = None
) -> Batch:
    """Read some utterances, as they are or each under its own of all utterances' conditions."""
    items = [store.item(i) for i in indices]
    if conditions is not None and store.frontend_spec is not None:
        items = [
            under_condition(item, conditions[i], store.frontend_spec)
            for i, item in zip(indices, items, strict=True)
        ]
    features = pad_sequence([item.features for item in items], batch_first=True)
    frames = features.shape[1]
    return Batch(
        features=F.pad(features, (0, 0, 0, padded_frames(frames) - frames)),
        num_frames=torch.tensor([len(item.features) for item in items]),
        tokens=pad_sequence([item.tokens for item in items], batch_first=True),
        num_tokens=torch.tensor([len(item.tokens) for item in items]),
        seconds=sum(item.seconds for item in items),
        ids=tuple(item.id for item in items),
        texts=tuple(item.text for item in items),
        indices=tuple(indices),
    )


def under_condition(item: Item, condition: Condition, frontend_spec: FrontendSpec) -> Item:
    """An utterance as training gets it; one that is silenced has no words left."""
    features = apply_condition(item.features, condition, frontend_spec)
    if condition.is_empty:
        return replace(item, features=features, tokens=item.tokens[:0], text="")
    return replace(item, features=features)


def padded_frames(num_frames: int) -> int:
    """The next of few lengths, eight an octave.

    Kernels are compiled for each shape that is new: with every length a batch has of its own, that
    took a third of the training time in bf16 on a CPU, and gigabytes for what was kept.
    """
    # From 257 to 512 frames in steps of 32, from 513 to 1024 in steps of 64: 420 becomes 448, and
    # 1000 becomes 1024. Up to 16 frames every length stays.
    step = 1 << max(0, (num_frames - 1).bit_length() - 4)
    return -(-num_frames // step) * step


class TrainBatches:
    """Batches without end: every utterance once an epoch, like lengths together.

    Where it stands is two numbers, so a resumed run sees exactly what an uninterrupted one does.
    """

    def __init__(
        self,
        store: FeatureStore,
        batch_seconds: float,
        seed: int,
        *,
        augment: AugmentConfig | None = None,
        clean_batches: int = 0,
    ) -> None:
        """Begin with the first epoch.

        Args:
            store: the utterances.
            batch_seconds: most of a batch, padding and added silence included.
            seed: of the order, and of the conditions.
            augment: the conditions under which utterances are given; None gives them as they are.
            clean_batches: before there are any conditions.
        """
        self._store, self._batch_seconds, self._seed = store, batch_seconds, seed
        self._augment, self._clean_batches = augment, clean_batches
        # Counted without added silence, which gives later epochs more batches: `clean_batches` then
        # means the same amount of speech whatever is drawn.
        self._epoch_batches = len(plan_epoch(store.num_frames, batch_seconds, seed, 0))
        self._epoch = self._position = 0
        self._plan = self._make_plan()

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> Batch:
        if self._position == len(self._plan):
            self._epoch, self._position = self._epoch + 1, 0
            self._plan = self._make_plan()
        is_clean = self._epoch * self._epoch_batches + self._position < self._clean_batches
        conditions = None if is_clean else self._conditions
        batch = read_batch(self._store, self._plan[self._position], conditions)
        self._position += 1
        return batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._epoch, self._position = state["epoch"], state["position"]
        self._plan = self._make_plan()

    def _make_plan(self) -> list[list[int]]:
        """Draw the epoch's conditions, then form batches of the lengths that they give."""
        num_frames = self._store.num_frames
        added = None
        self._conditions: list[Condition] | None = None
        # Whether no batch of this epoch needs conditions. With 10 batches an epoch and 25 clean
        # ones, epochs 0 and 1 have none; epoch 2 is planned with them, and its first 5 batches are
        # clean.
        is_clean = (self._epoch + 1) * self._epoch_batches <= self._clean_batches
        if self._augment is not None and not is_clean:
            self._conditions = draw_conditions(
                len(num_frames),
                self._augment,
                self._store.frontend_spec,
                seed=self._seed,
                epoch=self._epoch,
            )
            added = np.array([condition.added_frames for condition in self._conditions])
        return plan_epoch(
            num_frames, self._batch_seconds, self._seed, self._epoch, added_frames=added
        )


def plan_epoch(
    num_frames: np.ndarray,
    batch_seconds: float,
    seed: int,
    epoch: int,
    *,
    added_frames: np.ndarray | None = None,
) -> list[list[int]]:
    """Say who meets whom, and when.

    Args:
        num_frames: of each utterance's speech, by which like lengths are put together.
        batch_seconds: most of a batch, with padding and what is added.
        seed: of the order.
        epoch: one of the training's.
        added_frames: silence that each utterance gets. It counts, but does not sort: a batch of
            utterances that are mostly silence would have other batch-norm statistics than speech.
    """
    # Lengths with up to 5 % of noise are sorted, the sorted order is split into batches, and the
    # batches are shuffled: neighbors in length differ from epoch to epoch, padding stays small.
    rng = np.random.default_rng([seed, epoch])
    noisy = num_frames * rng.uniform(1 - _JITTER, 1 + _JITTER, len(num_frames))
    lengths = num_frames if added_frames is None else num_frames + added_frames
    batches = _split_into_batches(np.argsort(noisy, kind="stable"), lengths, batch_seconds)
    return [batches[i] for i in rng.permutation(len(batches))]


def dev_batches(store: FeatureStore, batch_seconds: float) -> Iterator[Batch]:
    """Every utterance once, shortest first; `indices` gives back the store's order."""
    order = np.argsort(store.num_frames, kind="stable")
    for indices in _split_into_batches(order, store.num_frames, batch_seconds):
        yield read_batch(store, indices)


def _split_into_batches(
    order: np.ndarray, num_frames: np.ndarray, batch_seconds: float
) -> list[list[int]]:
    """Cut an order into batches of one utterance, or at most `batch_seconds` with padding."""
    batches: list[list[int]] = []
    longest = 0
    for i in order.tolist():
        # What counts is longest times utterances. Lengths of 100, 100, 200 and 400 and at most 420
        # frames: [100, 100] is 2 * 104; with the third it would be 3 * 208; 200 and 400 stay alone.
        longest = max(longest, padded_frames(int(num_frames[i])))
        is_full = batches and longest * (len(batches[-1]) + 1) > batch_seconds * FRAMES_PER_SECOND
        if is_full or not batches:
            batches.append([])
            longest = padded_frames(int(num_frames[i]))
        batches[-1].append(i)
    return batches
