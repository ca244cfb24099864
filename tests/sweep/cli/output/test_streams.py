"""A terminal that is closed, a pipe nobody reads: an orderly end, and no noise."""

import errno
import fcntl
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from sweep.config.sweep import create, load
from sweep.ledger.ledger import Ledger
from sweep.run import driver

PROGRAM = [sys.executable, "-P", "-m", "sweep"]


@pytest.fixture
def begun(tiny_space, tmp_path, tiny_shared, empty_database):
    """A sweep of trials of some seconds, with speech, teacher and MLflow's tables at hand."""
    text = tiny_space.read_text().replace("[trial.tuning]\nsteps = 2", "[trial.tuning]\nsteps = 20")
    tiny_space.write_text(text)
    folder = tmp_path / "sweep"
    create(folder, load(str(tiny_space)).with_budget(trials=2), text)
    shutil.copytree(tiny_shared, folder, dirs_exist_ok=True)
    shutil.copy(empty_database, folder / "mlflow.db")
    return folder


@contextmanager
def on_a_terminal(*words, ignores_hangup=False):
    """A session of its own on a terminal of its own: its process, and the terminal's other end."""
    master, slave = pty.openpty()

    def take():
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignores_hangup else signal.SIG_DFL)

    ends = {"stdin": slave, "stdout": slave, "stderr": slave}
    process = subprocess.Popen([*PROGRAM, *words], **ends, preexec_fn=take)  # noqa: PLW1509, S603
    os.close(slave)
    threading.Thread(target=read_all, args=[master], daemon=True).start()
    try:
        yield process, master
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def read_all(master):
    with suppress(OSError):
        while os.read(master, 65536):
            pass


def wait_for_reports(folder, process, count):
    events = folder / "events.jsonl"
    while not (events.exists() and events.read_text().count('"report"') >= count):
        assert process.poll() is None
        time.sleep(0.1)


def states(folder):
    ledger = Ledger.open(folder)
    ledger.close()
    return {record.state for record in ledger.records()}


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_whose_terminal_is_closed_ends_in_order_and_goes_on_later(begun):
    with on_a_terminal("resume", str(begun)) as (process, terminal):
        wait_for_reports(begun, process, 2)
        os.close(terminal)
        assert process.wait(timeout=300) == driver.INTERRUPTED
    assert states(begun) <= {"finished", "waiting"}
    lines = (begun / "events.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["event"] == "interrupted"

    assert subprocess.run([*PROGRAM, "resume", begun], check=False).returncode == driver.DONE  # noqa: S603
    assert states(begun) == {"finished"}


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_that_ignores_a_hangup_goes_to_its_end_without_its_terminal(begun):
    with on_a_terminal("resume", str(begun), ignores_hangup=True) as (process, terminal):
        wait_for_reports(begun, process, 2)
        os.close(terminal)
        assert process.wait(timeout=300) == driver.DONE
    assert states(begun) == {"finished"}


def test_a_reader_that_has_had_enough_ends_a_command_quietly(begun):
    ledger = Ledger.create(begun)
    ledger.add({"pruning.target_sparsity": 0.5}, {})
    ledger.close()
    unread, written = os.pipe()
    os.close(unread)

    for words in (["trials"], ["trials", "--json"], ["status"]):
        command = [*PROGRAM, *words, str(begun)]
        done = subprocess.run(  # noqa: S603
            command, stdout=written, stderr=subprocess.PIPE, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
    os.close(written)


WRITE = """
import sys, threading
from sweep.cli.output import streams as output
output.guard_output()
if "go on" in sys.argv:
    output.outlive_readers()
with output.flushed_output():
    print("ready", flush=True)
    sys.stdin.read()
    for stream in (sys.stdout, sys.stderr):
        print("x" * 100_000, file=stream)
    print("to the end")
    open(sys.argv[1], "w").write("done")
"""


@pytest.mark.parametrize(("word", "is_done"), [("", False), ("go on", True)])
def test_a_closed_pipe_ends_what_is_only_said_and_nothing_else(tmp_path, word, is_done):
    file = tmp_path / "done"
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-P", "-c", WRITE, file, word],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout.readline() == b"ready\n"
    process.stdout.close()
    process.stdin.close()

    assert process.wait(timeout=300) == 0
    assert file.exists() == is_done


def test_other_failures_of_output_are_still_failures():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(  # noqa: S603
            [*PROGRAM, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode not in (0, None)
    assert os.strerror(errno.ENOSPC) in done.stderr
