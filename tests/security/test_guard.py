"""The guard itself: it sees what it must see, or its silence would mean nothing."""

import os
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest


def _connect():
    with socket.socket() as caller, pytest.raises(OSError, match="refused"):
        caller.connect(("127.0.0.1", 1))


def _write_outside(outside):
    (outside / "x").write_text("")


DEEDS = {
    "runs a program": lambda _: subprocess.run([sys.executable, "-c", ""], check=True),
    "runs a shell": lambda _: os.system("true"),  # noqa: S605, S607
    "connects": lambda _: _connect(),
    "writes outside": _write_outside,
    "makes a folder outside": lambda outside: (outside / "d").mkdir(),
    "makes a link outside": lambda outside: (outside / "l").symlink_to("/etc/passwd"),
    "moves out": shutil.rmtree,
    "unpickles": lambda _: pickle.loads(pickle.dumps(Path())),  # noqa: S301
}


@pytest.mark.parametrize("deed", DEEDS)
def test_what_must_not_happen_is_seen(guard_effects, tmp_path, deed):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()

    with pytest.raises(AssertionError), guard_effects(inside):
        DEEDS[deed](outside)


def test_reading_and_writing_inside_is_allowed(guard_effects, tmp_path):
    with guard_effects(tmp_path):
        (tmp_path / "x").write_text(Path("/etc/hostname").read_text())
        with tempfile.TemporaryDirectory() as scratch:
            Path(scratch, "y").touch()
