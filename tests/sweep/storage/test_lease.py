import json
import os
import subprocess
import sys
import threading
import time

import pytest

from sweep.storage.lease import LEASE, Lease, LeaseError, holder
from sweep.storage.object_store import RefusedError, Remote

OTHER = {"host": "elsewhere", "pid": 7, "token": "other"}


@pytest.fixture
def store(address):
    return Remote(address)


def elsewhere(store):
    """As if another machine had written it."""
    values = json.loads(store.read(LEASE).data)
    store.write(LEASE, json.dumps(values | OTHER).encode())


def test_one_driver_has_a_sweep_and_gives_it_back(store):
    lease = Lease(store)
    assert lease.acquire() is None

    assert holder(store).pid == os.getpid()
    lease.release()
    assert holder(store) is None
    assert Lease(store).acquire() is None


def test_who_lives_keeps_it(store):
    mine = Lease(store, seconds=5)
    mine.acquire()
    is_over = threading.Event()

    def beat():
        while not is_over.wait(0.5):
            mine.renew()

    thread = threading.Thread(target=beat)
    thread.start()
    began = time.monotonic()
    other = Lease(store, seconds=5).acquire()
    is_over.set()
    thread.join()
    assert (other.pid, str(other).split()[0]) == (os.getpid(), "process")
    assert time.monotonic() - began < 4


def test_who_is_not_heard_of_for_as_long_as_he_said_loses_it(store):
    Lease(store, seconds=1).acquire()
    elsewhere(store)
    assert holder(store).host == "elsewhere"
    began = time.monotonic()

    assert Lease(store, seconds=1).acquire() is None
    assert time.monotonic() - began >= 1
    assert holder(store).pid == os.getpid()


def test_a_process_of_this_machine_that_is_no_more_is_not_waited_for(address):
    code = f"""
import os, signal
from sweep.storage.lease import Lease
from sweep.storage.object_store import RefusedError, Remote
assert Lease(Remote({address!r}), seconds=600).acquire() is None
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-P", "-c", code], check=False)  # noqa: S603
    began = time.monotonic()

    assert Lease(Remote(address)).acquire() is None
    assert time.monotonic() - began < 10


def test_who_lost_it_is_told_at_the_next_beat(store):
    mine = Lease(store)
    mine.acquire()
    mine.renew()
    elsewhere(store)

    with pytest.raises(LeaseError, match="process 7 on elsewhere has taken it"):
        mine.renew()


@pytest.mark.parametrize(
    "changed",
    [{"seconds": 1e9}, {"seconds": -1}, {"seconds": "x"}, {"pid": "/etc"}, {"free": None}, None],
)
def test_a_lease_that_nobody_here_wrote_is_refused(store, changed):
    Lease(store).acquire()
    values = json.loads(store.read(LEASE).data)
    text = b"[" * 100_000 if changed is None else json.dumps(values | changed).encode()
    store.write(LEASE, text)

    with pytest.raises(RefusedError, match="must be a driver's lease"):
        holder(store)
