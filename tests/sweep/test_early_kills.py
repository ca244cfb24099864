"""Killed while something comes into being, whatever it is: the next one makes it whole."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
from made_outcomes import make_outcome

from sweep.config.distributions import Range
from sweep.config.sweep import CONFIG_FILE, create, parse
from sweep.ledger.files import JOURNAL
from sweep.ledger.ledger import OBJECTIVES, Ledger
from sweep.run.background_writer import _end_last_line
from sweep.search.warm_start import begin, warm_start_records
from sweep.snapshot import load_snapshot

SPACE = """
[trial.pruning]
steps = 100
target_sparsity = { uniform = [0.2, 0.8] }
"""
LEAVES = {"pruning.target_sparsity": Range(low=0.1, high=0.9)}

MAKE_LEDGER = """
import os, signal, sys
from pathlib import Path
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sweep.ledger.ledger import Ledger

done, last = 0, int(sys.argv[3])

def count(*_, **__):
    global done
    if done == last:
        os.kill(os.getpid(), signal.SIGKILL)
    done += 1

event.listen(Engine, "before_cursor_execute", count)
event.listen(Engine, "commit", count)
sys.addaudithook(lambda name, _: count() if name in ("os.symlink", "os.link") else None)
Ledger.create(Path(sys.argv[1]), kind=sys.argv[2])
print(done)
"""


def steps_of_making(folder, kind, last=-1):
    """How many steps a ledger takes to come into being; None if it was killed before `last`."""
    folder.mkdir()
    command = [sys.executable, "-P", "-c", MAKE_LEDGER, str(folder), kind, str(last)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode in (0, -9), done.stderr
    return int(done.stdout) if done.returncode == 0 else None


@pytest.fixture(params=["sqlite", "journal", "postgresql"])
def kinds(request):
    """Places of ledgers, each of which has never held one."""
    if request.param != "postgresql":
        return [request.param] * 5
    address = request.getfixturevalue("postgres")
    names = [f"fresh{number}" for number in range(5)]
    with psycopg.connect(address, autocommit=True) as connection:
        for name in names:
            connection.execute(f"CREATE DATABASE {name}")
    return [f"{address.rpartition('/')[0]}/{name}" for name in names]


@pytest.mark.long
@pytest.mark.slow
def test_a_ledger_whose_making_was_killed_at_any_step_is_made_whole(tmp_path, kinds):
    steps = steps_of_making(tmp_path / "whole", kinds[0])
    moments = sorted({0, steps // 3, 2 * steps // 3, steps - 1})

    for kind, last in zip(kinds[1:], moments, strict=False):
        folder = tmp_path / f"{last}"
        assert steps_of_making(folder, kind, last) is None
        began = time.monotonic()
        ledger = Ledger.open_or_create(folder, OBJECTIVES, kind=kind)
        ledger.add({"pruning.target_sparsity": 0.3}, LEAVES)
        ledger.close()
        assert time.monotonic() - began < 20, "nobody waits for what a dead process held"
        again = Ledger.open(folder)
        again.close()
        assert len(again) == 1
        assert list(folder.glob(".*")) == []


def test_the_journals_lock_of_a_dead_writer_is_not_waited_for(tmp_path):
    Ledger.create(tmp_path, kind="journal").close()
    (tmp_path / f"{JOURNAL}.lock").symlink_to(tmp_path / JOURNAL)
    (tmp_path / f"{JOURNAL}.lock1234.rename").symlink_to(tmp_path / JOURNAL)
    began = time.monotonic()

    ledger = Ledger.open_or_create(tmp_path, OBJECTIVES, kind="journal")
    ledger.add({"pruning.target_sparsity": 0.3}, LEAVES)

    assert time.monotonic() - began < 15
    assert [path.name for path in tmp_path.iterdir()] == [JOURNAL]


def test_a_warm_start_that_was_killed_begins_again_with_all_it_had(tmp_path):
    old = tmp_path / "old"
    create(old, parse(SPACE, source="x.toml"), SPACE)
    (old / "features").mkdir()
    (old / "features" / "index.json").write_text("{}")
    ledger = Ledger.create(old)
    ledger.add({"pruning.target_sparsity": 0.3}, LEAVES)
    ledger.start(0)
    ledger.finish(0, [make_outcome(0.05, 1.5)])
    ledger.close()
    folder = tmp_path / "new"
    config = parse(SPACE, source="x.toml")

    begin(folder, config, [load_snapshot(old)])
    assert not (folder / CONFIG_FILE).exists(), "what has a config is a sweep, and begins so"
    assert begin(folder, config, [load_snapshot(old)]) == 1
    create(folder, config, SPACE)

    assert len(warm_start_records(folder)) == 1
    assert (folder / "features" / "index.json").read_text() == "{}"


@pytest.mark.parametrize("torn", ["", '{"time": 2, "ev', "x" * 3_000])
def test_a_torn_last_line_of_events_is_dropped_and_no_other(tmp_path, torn):
    file = tmp_path / "events.jsonl"
    whole = [json.dumps({"time": number, "event": "report"}) for number in range(3)]
    file.write_text("\n".join(whole) + "\n" + torn)

    _end_last_line(file)

    assert file.read_text().splitlines() == whole
    _end_last_line(Path(tmp_path / "none.jsonl"))
