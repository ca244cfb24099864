"""What is asked of a cluster's machines, and how a trial's wishes reach Ray."""

import os
from pathlib import Path

import pytest

from core.config.base import ConfigError
from sweep.config.sweep import ResourcesConfig, parse
from sweep.run.nodes import Machine, machine_fault, placement_request
from sweep.tracking.provenance import code_version


def test_a_directory_that_is_not_shared_is_named(tmp_path):
    fault = machine_fault(str(tmp_path / "elsewhere" / ".seen"), "word", code_version())

    assert fault is not None
    assert fault.startswith(
        f"`{tmp_path / 'elsewhere'}` must be a directory that all machines share"
    )


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_our_own_ray_listens_on_the_loopback_alone():
    files = [
        str(link.readlink())
        for pid in descendants(os.getpid())
        for link in Path(f"/proc/{pid}/fd").glob("*")
        if link.is_symlink()
    ]
    sockets = {name[8:-1] for name in files if name.startswith("socket:[")}
    listening = [
        row[1].partition(":")[0]
        for table in ("tcp", "tcp6")
        for row in map(str.split, Path(f"/proc/net/{table}").read_text().splitlines()[1:])
        if row[3] == "0A" and row[9] in sockets
    ]

    assert listening
    assert set(listening) <= {"0100007F", "0000000000000000FFFF00000100007F"}


def descendants(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {pid}.union(*(descendants(int(child)) for child in children))


def test_a_machine_has_a_label_if_the_rule_says_so():
    machine = Machine(id="1", address="", resources={}, labels={"kind": "big", "zone": "a"})

    assert machine.has({"kind": "big", "zone": "in(a, b)"})
    assert machine.has({"kind": "!small", "other": "!x"})
    assert not machine.has({"kind": "!in(big, small)"})
    assert not machine.has({"other": "x"})


def test_a_trial_of_several_ranks_takes_a_bundle_each():
    request = placement_request(ResourcesConfig(ranks=3, cpus=2, gpus=1))

    assert request.bundles == [{"CPU": 2.0, "GPU": 1.0}] * 3


@pytest.mark.parametrize(
    ("resources", "culprit"),
    [
        ("ranks = 2\ngpus = 0.5", "`resources.gpus` must be 0 or 1 with several ranks"),
        ("ranks = 0", "`resources.ranks` must be greater than or equal to 1"),
        ('labels = { kind = "in(a" }', "`resources.labels` must be values"),
    ],
)
def test_resources_that_cannot_be_are_refused_by_name(resources, culprit):
    with pytest.raises(ConfigError, match=culprit):
        parse(f"[resources]\n{resources}\n", source="space")


def test_labels_survive_being_written():
    text = '[sweep]\nname = "x"\n[resources]\nlabels = { "ray.io/zone" = "!a", kind = "b" }\n'
    config = parse(text, source="space")

    assert parse(config.toml(), source="written").resources == config.resources
