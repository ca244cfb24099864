"""Sweeps on a real cluster of three machines, any of which is lost, and what is asked of them."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from lossy_cluster import local_cluster
from mlflow import MlflowClient

from sweep.config.sweep import create, load
from sweep.ledger.ledger import Ledger
from sweep.tracking.provenance import code_version
from sweep.tracking.tracker import database_uri

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[3]
LONGER = ("[trial.tuning]\nsteps = 2", "[trial.tuning]\nsteps = 60")


@pytest.fixture(scope="module")
def cluster():
    """Three machines, the first of which runs no trial; two are just enough for two ranks."""
    with local_cluster(head_cpus=0) as made:
        yield made


@pytest.fixture
def make(tiny_space, tmp_path):
    """Make a sweep's directory from the tiny space, with some of its text replaced."""

    def made(resources, *replaced):
        text = tiny_space.read_text()
        for before, after in (("[trial.corpus]\n", f"{resources}\n[trial.corpus]\n"), *replaced):
            assert before in text
            text = text.replace(before, after)
        tiny_space.write_text(text)
        create(tmp_path / "sweep", load(str(tiny_space)), text)
        return tmp_path / "sweep"

    return made


@pytest.fixture
def start(cluster):
    """Start the command line, in a process of its own."""
    drivers = []

    def started(folder):
        command = [sys.executable, "-P", "-m", "sweep", "resume", str(folder)]
        driver = subprocess.Popen(  # noqa: S603
            [*command, "--address", cluster.address],
            env=os.environ | cluster.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        drivers.append(driver)
        return driver

    yield started
    for driver in drivers:
        driver.kill()
        driver.communicate()


JOINED = """
import json, sys
from pathlib import Path
import ray
from sweep.run import nodes, ray_cluster
from sweep.config.sweep import ResourcesConfig
with ray_cluster.connect(sys.argv[1]):
    {}
    print(json.dumps(answer))
"""


def asked(cluster, code):
    """The `answer` that some Python finds as a driver of the cluster."""
    program = JOINED.format(code.strip())
    command = [sys.executable, "-P", "-c", program, cluster.address]
    done = subprocess.run(  # noqa: S603
        command, env=os.environ | cluster.environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def wait_until(is_so, what, seconds=600):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def events_of(folder, kind):
    path = folder / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def records_of(folder):
    ledger = Ledger.open(folder)
    ledger.close()
    return ledger.records()


@pytest.mark.long
def test_a_sweep_of_two_ranks_a_trial_outlives_a_lost_machine(cluster, make, start):
    folder = make("[resources]\nranks = 2", LONGER, ("trials = 4", "trials = 2"))
    driver = start(folder)

    wait_until(lambda: len(events_of(folder, "report")) > 3, "no reports")
    machine = max(cluster.processes)
    cluster.kill_node(machine)
    cluster.add_node()

    output, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0, output
    assert "(raylet)" not in output
    records = records_of(folder)
    assert [record.state for record in records] == ["finished"] * 2
    assert sum(record.attempts for record in records) == 3
    over = Counter(event["trial"] for event in events_of(folder, "finished"))
    assert over == {0: 1, 1: 1}
    client = MlflowClient(database_uri(folder))
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = list(client.search_runs(experiments))
    assert Counter(run.data.tags.get("sweep.trial", "parent") for run in runs) == Counter(
        ["parent", "0", "1"]
    )
    assert {run.info.status for run in runs} == {"FINISHED"}
    for number in range(2):
        steps = [e["step"] for e in events_of(folder, "report") if e["trial"] == number]
        assert steps == sorted(set(steps)), "lost work is done again, but not told again"
    states = "answer = [g['state'] for g in ray.util.placement_group_table().values()]"
    assert set(asked(cluster, states)) == {"REMOVED"}
    wait_until(lambda: not cluster.workers(), "workers were left", seconds=120)


LABELS = """
    needs = ResourcesConfig(labels={"kind": "big"})
    group = nodes.placement_request(needs).to_placement_group()
    is_placed = group.wait(60)
    ids = ray.util.placement_group_table(group)["bundles_to_node_id"].values()
    kinds = [m.labels.get("kind") for m in nodes.machines() if m.id in ids]
    others = [{"labels": {"kind": "huge"}}, {"ranks": 9}, {"gpus": 1}]
    answer = [kinds, *(nodes.resource_shortage(ResourcesConfig.parse(r)) for r in ({}, *others))]
"""


@pytest.mark.long
def test_trials_go_to_the_machines_with_their_labels(cluster):
    number = cluster.add_node(labels={"kind": "big"})
    try:
        kinds, none, label, ranks, gpus = asked(cluster, LABELS)
    finally:
        cluster.kill_node(number)

    assert kinds == ["big"]
    assert none is None
    assert label.startswith("`resources.labels` must be those of a machine, but none of 4 has")
    assert ranks.startswith("`resources.ranks` must be at most what all machines hold together, 3,")
    assert gpus.startswith("`resources.gpus` must be at most what one machine has, 0,")


EXAMINED = """
    try:
        nodes.check_machines(Path.cwd())
        answer = None
    except ray_cluster.ClusterError as error:
        answer = str(error)
"""


@pytest.mark.long
def test_a_machine_with_another_program_is_refused_by_name(cluster, tmp_path):
    for package in ("core", "sweep", "search_spaces"):
        shutil.copytree(ROOT / package, tmp_path / "other" / package)
    (tmp_path / "other" / "core" / "more.py").write_text('"""More."""\n')
    number = cluster.add_node(environment={"PYTHONPATH": str(tmp_path / "other")})
    try:
        answer = asked(cluster, EXAMINED)
    finally:
        cluster.kill_node(number)

    assert answer.startswith("On the machine 127.0.0.")
    version, _ = code_version().split()
    assert f" the program must be the driver's, {code_version()}, but is {version} " in answer
