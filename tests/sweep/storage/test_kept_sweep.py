"""A real sweep that a real object store keeps."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from core.report import LATENCY_FIELDS
from sweep.config.sweep import create, load
from sweep.run import driver
from sweep.storage.object_store import Remote

pytestmark = [pytest.mark.ray, pytest.mark.slow]

COMMAND = [sys.executable, "-P", "-m", "sweep"]
DONE, BAD_INPUT = 0, 2


def start(*words):
    return subprocess.Popen([*COMMAND, *map(str, words)], stdout=subprocess.DEVNULL)  # noqa: S603


def run(*words):
    done = subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, check=False)  # noqa: S603
    return done.returncode, done.stdout, done.stderr


def trials_of(folder):
    code, out, err = run("trials", folder, "--json")
    assert code == DONE, err
    return json.loads(out)


MEASURED = (
    *LATENCY_FIELDS,
    "seconds",
    "attempts",
    "mlflow_run_id",
)
"""Of this run of a trial, not of what it found."""


def found_by(rows):
    return [{k: v for k, v in row.items() if k not in MEASURED and k != "config"} for row in rows]


@pytest.fixture
def space(tiny_space):
    """Trials long enough that there is a middle to interrupt."""
    text = tiny_space.read_text()
    text = text.replace("trials = 4", "trials = 2")
    text = text.replace("[trial.tuning]\nsteps = 2", "[trial.tuning]\nsteps = 200")
    tiny_space.write_text(text.replace("report_steps = 2", "report_steps = 10"))
    return tiny_space


def wait_until(is_so, process, seconds=600):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert process.poll() is None, "the sweep has ended"
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.2)


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_sweep_goes_on_elsewhere_from_the_store_alone(
    address, space, tmp_path, monkeypatch
):
    plain = tmp_path / "plain"
    create(plain, load(str(space)), space.read_text())
    assert driver.run(plain) == DONE
    store = Remote(address)
    process = start("run", space, "--dir", address)
    monkeypatch.setenv("CONFORMER_SWEEP_SCRATCH", str(tmp_path / "there"))
    wait_until(lambda: store.read("generation"), process)
    values = json.loads(run("status", address, "--json")[1])
    assert (values["driver"], values["folder"]) == (process.pid, address)
    code, _, err = run("resume", address)
    assert (code, err.count("\n")) == (BAD_INPUT, 1)
    assert f"`{address}` must be free, but process {process.pid} on" in err

    def is_under_way():
        return any(key.endswith("/sha256") for key in store.under("trials")) and store.read(
            "ledger.db"
        )

    wait_until(is_under_way, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(3)  # its workers end, too
    shutil.rmtree(tmp_path / "here")

    code, out, err = run("resume", address)
    assert code == DONE, err
    assert address in out
    rows = trials_of(address)
    assert found_by(rows) == found_by(trials_of(plain))
    assert {row["state"] for row in rows} == {"finished"}
    keys = store.under("trials")
    for row in rows:
        name = f"trials/{row['trial']:04}"
        assert {f"{name}/outcomes.json", f"{name}/model/model.safetensors"} <= set(keys)
    files, folders = store.list_root()
    assert {"sweep.toml", "ledger.db", "mlflow.db", "events.jsonl", "shared.json"} <= set(files)
    assert {"front", "features", "teacher", "trials"} <= set(folders)
