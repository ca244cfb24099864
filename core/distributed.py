"""Several processes that train one trial together, each on its part of every batch.

What a rank gives of a batch is its part: the sum over ranks is what one process would have given.
So a sum stays a sum, a mean becomes this rank's share of it, and what all compute alike is divided
by their number. Outside `together` every process is alone, and nothing here does anything.
"""

import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

PATIENCE = timedelta(minutes=30)
"""A rank waits so long for the others: the first evaluates while they do."""
BUCKET = 2**24
"""So many numbers travel at once."""

ValueT = TypeVar("ValueT")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """The number of this process among those that train together."""

    rank: int = 0
    size: int = 1
    is_idle: bool = False
    """Whether what it holds of a batch counts nothing: there were fewer utterances than ranks."""

    @property
    def is_first(self) -> bool:
        """The first evaluates, writes and reports, alone."""
        return self.rank == 0

    def first(self, value: ValueT) -> ValueT:
        """Returns the first rank's value on every rank."""
        if self.size == 1:
            return value
        # Objects travel as pickles, so values of any kind will do.
        box: list[Any] = [value if self.is_first else None]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: ValueT) -> list[ValueT]:
        """Returns the values of all ranks, in their order."""
        if self.size == 1:
            return [value]
        boxes: list[Any] = [None] * self.size
        dist.all_gather_object(boxes, value)
        return boxes

    def align(self, state: Any) -> None:
        """Give all the numbers that the first has, in place, wherever they lie in nested state."""
        if self.size > 1:
            for tensor in _numbers(state):
                dist.broadcast(tensor, src=0)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Put sums over ranks in the place of these tensors, which are of one type."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            # One exchange for about 16 M numbers instead of one for each of many small tensors.
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(flat)
            sizes = [tensor.numel() for tensor in bucket]
            for tensor, summed in zip(bucket, flat.split(sizes), strict=True):
                tensor.copy_(summed.view_as(tensor))


ALONE = Ranks()

_CURRENT: ContextVar[Ranks] = ContextVar("ranks", default=ALONE)


def current() -> Ranks:
    """Returns the ranks that work on the current batch."""
    return _CURRENT.get()


@contextmanager
def together(ranks: Ranks) -> Iterator[None]:
    """Work on one batch with all ranks; each must come by the same calls in the same order."""
    token = _CURRENT.set(ranks)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def part_of_mean(mean: Float[Tensor, "*any"], count: int | Tensor) -> Float[Tensor, "*any"]:
    """This rank's part of a mean over all ranks' things, of which it has so many."""
    ranks = current()
    if ranks.size == 1:
        return mean
    # Ranks with 3 and 1 utterances and means of 2 and 6: parts 2 * 3/4 and 6 * 1/4 add up to the
    # mean of all, 3.
    own = torch.as_tensor(count, device=mean.device).float() * (not ranks.is_idle)
    whole = own.clone()
    dist.all_reduce(whole)
    return mean * (own / whole.clamp(min=1))


def part_of_same(value: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """This rank's part of what all compute alike."""
    size = current().size
    return value if size == 1 else value / size


@torch.no_grad()
def whole(part: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """The sum of all ranks' parts, without a gradient."""
    if current().size > 1:
        dist.all_reduce(part)
    return part


@torch.no_grad()
def broadcast_draw(draw: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Returns the first rank's draw on every rank: its generator is that of a single process."""
    if current().size > 1:
        dist.broadcast(draw, src=0)
    return draw


def moments(
    x: Float[Tensor, "frames channels"],
) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"], Float[Tensor, ""]]:
    """Mean, mean square about it and number of all ranks' frames; differentiable.

    Each rank's own moments are joined (Chan et al., 1983): sums of squares would lose digits.
    """
    ranks = current()
    num = x.new_full((), 0.0 if ranks.is_idle else len(x))
    mean = x.mean(0)
    squares = (x - mean).square().sum(0) * (not ranks.is_idle)
    row = torch.cat((mean, squares, num[None]))
    # A sum of rows, each filled by one rank, is a gather that has a gradient.
    rows = row.new_zeros(ranks.size, len(row))
    rows[ranks.rank] = row
    means, squares, nums = _Sum.apply(rows).split((x.shape[1], x.shape[1], 1), dim=1)
    total = nums.sum()
    joint = (nums * means).sum(0) / total
    # Squares about the joint mean: those about each rank's own mean, and N (own - joint)^2.
    spread = (squares + nums * (means - joint).square()).sum(0) / total
    return joint, spread, total


class _Sum(torch.autograd.Function):
    """The sum over ranks; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        summed = x.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        # Each rank's loss depends on the sums, so the gradient of a rank's input is the sum over
        # losses.
        summed = gradients[0].contiguous().clone()
        dist.all_reduce(summed)
        return summed


def open_store(host: str, listening: socket.socket | None = None) -> TCPStore:
    """Where ranks find each other; the first keeps it.

    Without a socket that listens already, the system chooses a port of every network.
    """
    port = listening.getsockname()[1] if listening else 0
    descriptor = listening.detach() if listening else None
    return TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=PATIENCE,
        master_listen_fd=descriptor,
    )


def has_lost_touch(error: BaseException) -> bool:
    """Whether an error is but that another rank does not answer; gloo's has no type of its own."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error).lower()
    )


@contextmanager
def join_ranks(
    *, rank: int, size: int, store: str | TCPStore, device: torch.device
) -> Iterator[Ranks]:
    """Be one of several ranks.

    Args:
        rank: which.
        size: of how many.
        store: the first rank's, itself or its `host:port`.
        device: what this rank computes on.

    Raises:
        RuntimeError: torch's, here or in any later call, if a rank is lost.
    """
    if isinstance(store, str):
        host, _, port = store.rpartition(":")
        store = TCPStore(host, int(port), timeout=PATIENCE)
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)  # Ray shows a rank no card but its own
    # Some draws lie on the CPU, gradients on the GPU: each device needs a backend of its own.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield Ranks(rank=rank, size=size)
    finally:
        dist.destroy_process_group()


def _numbers(state: Any) -> Iterator[Tensor]:
    """All tensors of numbers in nested state, in an order that all ranks have."""
    if isinstance(state, Tensor) and state.is_floating_point():
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from _numbers(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _numbers(value)


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    numbers = 0
    for tensor in tensors:
        bucket.append(tensor)
        numbers += tensor.numel()
        if numbers >= BUCKET:
            yield bucket
            bucket, numbers = [], 0
    if bucket:
        yield bucket
