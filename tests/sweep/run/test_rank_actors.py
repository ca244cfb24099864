"""The first rank of a trial learns what befell the others, and never waits for who is gone."""

import os
import sys
import time

import pytest
import ray
import torch
import torch.distributed as dist
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from sweep.run.rank_actors import gather_ranks
from sweep.run.ray_cluster import LostWorkerError

pytestmark = [pytest.mark.ray, pytest.mark.slow]

CPU = torch.device("cpu")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers know no tests


@ray.remote
class First:
    """The first rank, in a process that outlives a trial, as Tune's does."""

    def run(self, fate):
        with gather_ranks({"fate": fate}, 2, further, CPU) as ranks:
            total = torch.ones(1)
            dist.all_reduce(total)
            if fate == "first fails":
                raise KeyError("mine")
            dist.all_reduce(total)
            return float(total), ranks.gather(os.getpid())


def further(job, join):
    with join(CPU) as ranks:
        total = torch.ones(1)
        dist.all_reduce(total)
        if job["fate"] == "other fails":
            raise ZeroDivisionError("another's")
        if job["fate"] == "other dies":
            os._exit(1)
        dist.all_reduce(total)
        ranks.gather(os.getpid())


@pytest.fixture(scope="module")
def first(ray_cluster):  # noqa: ARG001
    group = placement_group([{"CPU": 1}] * 2)
    where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    yield First.options(num_cpus=1, scheduling_strategy=where).remote()
    remove_placement_group(group)


def test_ranks_work_together_and_stay_for_the_next_trial(first):
    once, again = (ray.get(first.run.remote("fine")) for _ in range(2))

    assert once[0] == 4
    assert len(set(once[1])) == 2
    assert again == once, "the same processes"


@pytest.mark.parametrize(
    ("fate", "error"),
    [
        ("other fails", ZeroDivisionError),
        ("first fails", KeyError),
        ("other dies", LostWorkerError),
    ],
)
def test_the_first_rank_raises_what_was_first(first, fate, error):
    began = time.monotonic()

    with pytest.raises(error):
        ray.get(first.run.remote(fate))

    assert time.monotonic() - began < 60
    assert ray.get(first.run.remote("fine"))[0] == 4, "the next trial has all its ranks"
