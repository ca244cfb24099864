import io
import os
import subprocess
import sys
import tarfile

import pytest
from made_outcomes import make_outcome

from core.config.base import ConfigError
from sweep.config.diff import changes, check
from sweep.config.distributions import Range
from sweep.config.sweep import create, load, open_config, parse
from sweep.ledger.ledger import Ledger
from sweep.local_lock import LockedError
from sweep.storage.archive import pack, unpack
from sweep.storage.lock import sweep_lock
from sweep.tracking.tracker import Tracker

LEAVES = {"pruning.target_sparsity": Range(low=0.2, high=0.8)}


@pytest.fixture
def sweep(tiny_space, tmp_path):
    folder = tmp_path / "sweep"
    create(folder, load(str(tiny_space)), tiny_space.read_text())
    ledger = Ledger.create(folder)
    ledger.add({"pruning.target_sparsity": 0.5}, LEAVES)
    ledger.start(0)
    ledger.finish(0, [make_outcome()])
    ledger.close()
    model = folder / "trials" / "0000" / "model"
    model.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(os.urandom(1000))
    return folder


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_what_is_unpacked_is_what_was_packed(sweep, tmp_path):
    pack(sweep, tmp_path / "sweep.tar.gz")
    unpack(tmp_path / "sweep.tar.gz", tmp_path / "elsewhere")

    packed = contents(sweep)
    packed.pop("lock")
    assert contents(tmp_path / "elsewhere") == packed
    assert open_config(tmp_path / "elsewhere") == open_config(sweep)


@pytest.mark.parametrize("kind", ["journal", "postgresql"])
def test_a_sweep_is_packed_whole_wherever_its_ledger_lies(request, tiny_space, tmp_path, kind):
    other = request.getfixturevalue("postgres") if kind == "postgresql" else kind
    folder, again = tmp_path / "sweep", tmp_path / "elsewhere"
    config = load(str(tiny_space)).with_budget(ledger=other)
    create(folder, config, tiny_space.read_text())
    ledger = Ledger.open_or_create(folder, ["wer", "gflops"], kind=other)
    ledger.set_attribute("config", config.toml())
    ledger.add({"pruning.target_sparsity": 0.5}, LEAVES)
    ledger.close()
    pack(folder, tmp_path / "sweep.tar.gz")
    unpack(tmp_path / "sweep.tar.gz", again)

    kind_there = "sqlite" if kind == "postgresql" else "journal"
    assert open_config(again) == open_config(folder).with_budget(ledger=kind_there)
    there = Ledger.open_or_create(again, ["wer", "gflops"], kind=kind_there)
    assert there.records() == ledger.records()
    check(changes(parse(there.attribute("config"), source="the ledger"), open_config(again)))
    there.close()
    assert not (again / "ledger.address").exists()


def test_a_live_sweep_is_not_packed(sweep, tmp_path):
    with sweep_lock(sweep), pytest.raises(LockedError):
        pack(sweep, tmp_path / "sweep.tar.gz")
    assert list(tmp_path.glob("*.gz*")) == []


def test_nothing_is_written_over(sweep, tmp_path):
    file = tmp_path / "sweep.tar.gz"
    pack(sweep, file)

    with pytest.raises(ConfigError, match="must be new"):
        pack(sweep, file)
    before = contents(sweep)
    with pytest.raises(ConfigError, match="must be a new folder"):
        unpack(file, sweep)
    assert contents(sweep) == before


def archive_of(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b"no archive"),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:-500]),
        lambda file: file.write_bytes(file.read_bytes()[:200] + b"x" * 200),
        lambda file: archive_of(file, {"sweep.toml": b"", "../outside": b"evil"}),
        lambda file: archive_of(file, {"notes.txt": b"no sweep"}),
    ],
    ids=["text", "empty", "short", "garbled", "climbing", "another"],
)
def test_what_is_no_packed_sweep_is_refused_and_leaves_nothing(sweep, tmp_path, damage):
    file = tmp_path / "sweep.tar.gz"
    pack(sweep, file)
    damage(file)
    before = sorted(tmp_path.iterdir())

    with pytest.raises(ConfigError, match="must be a packed sweep"):
        unpack(file, tmp_path / "elsewhere")
    assert sorted(tmp_path.iterdir()) == before


# Another process, as after a real move: MLflow remembers places as long as it lives.
FIRST = """
import sys
from pathlib import Path
from sweep.ledger.records import TrialRecord
from sweep.tracking.tracker import Tracker

tracker = Tracker(Path(sys.argv[1]), "demo")
print(tracker.open_sweep("[sweep]", {}))
tracker.open_trial(TrialRecord(number=0, state="running"))
tracker.close()
"""


@pytest.mark.long
def test_mlflow_s_artifacts_are_found_where_the_sweep_moved(sweep, tmp_path):
    command = [sys.executable, "-P", "-c", FIRST, str(sweep)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    moved = tmp_path / "moved"
    sweep.rename(moved)

    tracker = Tracker(moved, "demo")
    assert tracker.open_sweep("[sweep]\nname = 2\n", {}) == done.stdout.strip()
    (text,) = (moved / "mlartifacts").rglob("sweep.toml")
    assert "name = 2" in text.read_text()
    assert not sweep.exists(), "nothing is written where it was"
