"""The further ranks of a trial: actors in its placement group; the first rank is Tune's own actor.

They live as long as the first rank's process, to which Tune gives one trial after another. If one
of them is lost, the attempt ends at once, as if its worker had been lost.
"""

import contextlib
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from core.distributed import Ranks, has_lost_touch, join_ranks, open_store
from sweep.run.ray_cluster import LostWorkerError

START_SECONDS = 300.0
"""Time to start a process with its imports on a busy machine."""
VERDICT_SECONDS = 60.0
"""Time in which Ray finds out why a rank does not answer, even if its whole machine is lost."""
WATCH_SECONDS = 1.0
LEAVE_SECONDS = 1.0
"""Time in which the other ranks notice that the first has left a trial that was stopped."""

Work = Callable[[Mapping[str, Any], Callable[..., contextlib.AbstractContextManager[Ranks]]], None]
"""The function that a rank calls with a job and a function that joins the ranks on a device."""


# No restarts: a new process would wait for a process group that its trial has already formed.
@ray.remote(max_restarts=0, max_task_retries=0)
class _Rank:
    def meet(self) -> None:
        _use_interface(_own_address())
        import_module("core.trial")  # seconds, in which the first does the same

    def run(self, work: Work, job: Mapping[str, Any], rank: int, size: int, store: str) -> None:
        """Run a trial as one of its ranks.

        Args:
            work: called with the job and a function that joins the other ranks.
            job: the trial.
            rank: its number, from 1; the worker of the trial is rank 0.
            size: number of ranks.
            store: address at which the ranks find each other.
        """

        def join(device: Any) -> contextlib.AbstractContextManager[Ranks]:
            return join_ranks(rank=rank, size=size, store=store, device=device)

        work(job, join)


_actors: list[Any] = []
"""The further ranks of this process, by rank less one."""


@contextmanager
def gather_ranks(job: Mapping[str, Any], size: int, work: Work, device: Any) -> Iterator[Ranks]:
    """Join the other ranks of a trial as the first rank.

    Args:
        job: the trial.
        size: number of ranks.
        work: called on each further rank.
        device: of the first rank.

    Raises:
        LostWorkerError: if another rank is lost.
        Exception: what another rank raised, if that was first.
    """
    if size == 1:
        yield Ranks()
        return
    address = _own_address()
    _use_interface(address)
    actors = _ready_actors(size)
    # Port 0: the system chooses a free one, and the socket stays open until the store takes it
    # over. A port that is closed again after the choice may be another process's by then.
    server = socket.create_server((address, 0))
    store = open_store(address, server)
    store_address = f"{address}:{store.port}"
    calls = [
        actor.run.remote(work, job, rank, size, store_address)
        # Of 4 ranks, this process is rank 0 and actors 0, 1, 2 are ranks 1, 2, 3.
        for rank, actor in enumerate(actors, 1)
    ]
    is_over = threading.Event()
    # A thread, because the main one may be inside a collective that never returns.
    threading.Thread(target=_end_if_lost, args=(calls, is_over), daemon=True).start()
    try:
        with (
            join_ranks(rank=0, size=size, store=store, device=device) as ranks,
            _reraise_rank_error(calls),
        ):
            yield ranks
        ray.get(calls, timeout=START_SECONDS)
    except Exception:
        stop_ranks()
        raise
    finally:
        # A trial that was stopped early leaves by Tune's SystemExit, which the clause above lets
        # pass. Its other ranks notice and end, or are killed: the next trial needs idle ones.
        is_over.set()
        if len(ray.wait(calls, num_returns=len(calls), timeout=LEAVE_SECONDS)[0]) < len(calls):
            stop_ranks()


def start_ranks(size: int) -> None:
    """Start the further ranks that are missing, without waiting for them."""
    if len(_actors) == size - 1:
        return
    stop_ranks()
    group = ray.util.get_current_placement_group()
    assert group is not None, "Tune gives each trial one"
    _actors.extend(_start_actor(group, rank) for rank in range(1, size))
    for actor in _actors:
        actor.meet.remote()


def stop_ranks() -> None:
    """End the further ranks of this process; a later trial starts new ones."""
    for actor in _actors:
        ray.kill(actor)
    _actors.clear()


def _ready_actors(size: int) -> Sequence[Any]:
    """The further ranks, ready to work; those of the last trial if they still live."""
    for _ in range(2):  # one of the last trial's may have died meanwhile
        start_ranks(size)
        if _are_ready(_actors):
            return _actors
        stop_ranks()
    raise LostWorkerError(f"{size} ranks must be ready, but are not.")


def _own_address() -> str:
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return address


def _start_actor(group: PlacementGroup, rank: int) -> Any:
    # Bundle 0 is Tune's own actor, the first rank; bundle r was reserved for rank r.
    bundle = group.bundle_specs[rank]
    return _Rank.options(  # type: ignore[attr-defined]
        num_cpus=bundle.get("CPU", 0),
        num_gpus=bundle.get("GPU", 0),
        scheduling_strategy=PlacementGroupSchedulingStrategy(
            placement_group=group, placement_group_bundle_index=rank
        ),
    ).remote()


def _are_ready(actors: Sequence[Any]) -> bool:
    try:
        ray.get([actor.meet.remote() for actor in actors], timeout=START_SECONDS)
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        return False
    return True


@contextmanager
def _reraise_rank_error(calls: Sequence[Any]) -> Iterator[None]:
    """If the first rank fails because another does not answer, raise the other's error."""
    try:
        yield
    except Exception as error:
        if not has_lost_touch(error):
            raise
        raise _first_rank_error(calls) or LostWorkerError("A rank does not answer.") from error


def _first_rank_error(calls: Sequence[Any]) -> Exception | None:
    """The first error of another rank, once Ray knows it: one of its own rather than its loss."""
    ended, _ = ray.wait(list(calls), num_returns=len(calls), timeout=VERDICT_SECONDS)
    errors = [error for call in ended if (error := _error_of(call)) is not None]
    for error in errors:
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else None
        if isinstance(cause, Exception) and not has_lost_touch(cause):
            return cause
    return LostWorkerError(str(errors[0]).splitlines()[0]) if errors else None


def _error_of(call: Any) -> Exception | None:
    try:
        ray.get(call, timeout=0)
    except Exception as error:  # noqa: BLE001  (whatever it is, it is the answer)
        return error
    return None


def _end_if_lost(calls: Sequence[Any], is_over: threading.Event) -> None:
    """End this process if another rank has failed and this one still waits for it."""
    while not is_over.wait(WATCH_SECONDS):
        ended, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        if any(_error_of(call) is not None for call in ended):
            # The main thread may be about to notice by itself, and knows the error better: it has
            # two minutes. Ending the process is the only way out of a collective.
            if not is_over.wait(2 * VERDICT_SECONDS):
                os._exit(1)
            return


def _use_interface(address: str) -> None:
    """Let torch use the network interface that Ray uses: a host's name can mean another one."""
    for _, name in socket.if_nameindex():
        if _address_of(name) == address or (name == "lo" and address.startswith("127.")):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def _address_of(interface: str) -> str:
    """The IPv4 address of a network interface (SIOCGIFADDR); empty if it has none."""
    # `struct ifreq`: 16 bytes of name with its final zero, then a `sockaddr_in` of 2 bytes family,
    # 2 bytes port and, in bytes 20 to 23, the address.
    request = struct.pack("256s", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), 0x8915, request)[20:24])
    return ""
