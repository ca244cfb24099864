"""A guard over this process, a listener that nobody may call, and payloads that leave a mark."""

import os
import pickle
import shutil
import socket
import sys
import tempfile
import threading
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from unittest import mock

import pytest

RUNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn")
CONNECTS = (
    "socket.connect",
    "socket.sendto",
    "urllib.Request",
    "ftplib.connect",
    "webbrowser.open",
)
UNPICKLES = ("pickle.find_class",)
CHANGES = (
    *("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"),
    *("os.chmod", "os.chown", "os.utime", "shutil.rmtree"),
)
SPACE = """
[sweep]
name = "tiny"

[trial.pruning]
target_sparsity = { uniform = [0.2, 0.8] }
"""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass
class Guard:
    """What a block of code did that no reader of outside files may do."""

    folder: Path
    """The only place where it may write."""
    violations: list[str] = field(default_factory=list)

    def see(self, event, args):
        if event in (*RUNS, *CONNECTS, *UNPICKLES):
            self.violations.append(f"{event} {args!r}"[:300])
        elif event == "open" and self._writes(*args):
            self._check(event, args[0])
        elif event in CHANGES:
            paths = args[:2] if event == "os.rename" else args[:1]
            for path in args[1:2] if event in ("os.link", "os.symlink") else paths:
                self._check(event, _whole(path, args))

    @staticmethod
    def _writes(_, mode, flags):
        if isinstance(mode, str):
            return not set("wax+").isdisjoint(mode)
        return bool(isinstance(flags, int) and flags & WRITES)

    def _check(self, event, path):
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a descriptor: of a file that was opened before
        if event == "open" and Path(os.fsdecode(path)).is_dir():
            return  # a file without a name (O_TMPFILE) leaves nothing: so the home is tried
        parent = Path(os.path.realpath(os.path.dirname(os.fsdecode(path) or "."))) / "x"  # noqa: PTH120
        is_inside = parent.is_relative_to(self.folder.resolve())
        is_inside = is_inside or Path(os.path.realpath(os.fsdecode(path))) == self.folder.resolve()
        is_python_s = "__pycache__" in parent.parts or os.fsdecode(path) == os.devnull
        if not is_inside and not is_python_s:
            self.violations.append(f"{event} {os.fsdecode(path)!r}")


def _whole(path, args):
    """A path that is relative to an open folder, whole."""
    has_folder = isinstance(args[-1], int) and args[-1] >= 0 and len(args) > 1
    if not has_folder or not isinstance(path, str) or path.startswith("/"):
        return path
    try:
        return os.path.join(os.readlink(f"/proc/self/fd/{args[-1]}"), path)  # noqa: PTH115, PTH118
    except OSError:
        return path


_active: list[Guard] = []


def _hook(event, args):
    for guard in _active:
        guard.see(event, args)


@pytest.fixture(scope="session")
def audit_hook():
    """Hooks of this kind stay as long as the process lives."""
    sys.addaudithook(_hook)


@pytest.fixture(scope="module")
def guard_effects(audit_hook, tmp_path_factory):  # noqa: ARG001
    """Gives a block in which nothing may be run, fetched, unpickled or written outside a folder."""

    @contextmanager
    def guard_effects(folder=None):
        root = folder or tmp_path_factory.getbasetemp()
        before, tempfile.tempdir = tempfile.tempdir, str(root)
        guard = Guard(folder=root)
        _active.append(guard)
        try:
            yield guard
        finally:
            _active.remove(guard)
            tempfile.tempdir = before
        assert guard.violations == []

    return guard_effects


class Listener:
    """A port of this machine that notes whoever calls."""

    def __init__(self):
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(0.2)
        self.port = self._socket.getsockname()[1]
        self.calls: list[bytes] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def _listen(self):
        while not self._is_over.is_set():
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(1)
                try:
                    self.calls.append(connection.recv(10_000))
                except OSError:
                    self.calls.append(b"")

    def close(self):
        self._is_over.set()
        self._thread.join()
        self._socket.close()


@pytest.fixture
def listener():
    server = Listener()
    yield server
    server.close()


class Touch:
    """An object whose pickle makes a file when it is read."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


@pytest.fixture
def mark(tmp_path):
    """A file that only a payload would make."""
    return tmp_path / "mark"


@pytest.fixture
def payload(mark):
    """An object that makes the mark when it is unpickled, shown to work."""
    pickle.loads(pickle.dumps(Touch(mark))).close()  # noqa: S301
    assert mark.exists()
    mark.unlink()
    return Touch(mark)


@pytest.fixture(scope="session")
def made_sweep(tmp_path_factory):
    """A sweep with one finished trial, as its directory is after a run; not to be changed."""
    from made_outcomes import make_outcome  # noqa: PLC0415

    from sweep.config.distributions import Range  # noqa: PLC0415
    from sweep.config.sweep import create, parse  # noqa: PLC0415  # seconds, of these tests alone
    from sweep.ledger.ledger import Ledger  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("made") / "sweep"
    create(folder, parse(SPACE, source="tiny.toml"), SPACE)
    ledger = Ledger.create(folder)
    leaves = {"pruning.target_sparsity": Range(low=0.2, high=0.8)}
    ledger.add({"pruning.target_sparsity": 0.5}, leaves)
    ledger.start(0)
    ledger.finish(0, [make_outcome()])
    ledger.close()
    return folder


@pytest.fixture
def sweep(made_sweep, tmp_path):
    """A copy of that sweep, to be changed."""
    return Path(shutil.copytree(made_sweep, tmp_path / "sweep"))


@pytest.fixture
def run_command():
    """Gives exit code, standard output and standard error of a command, run in this process."""
    from sweep.cli import app  # noqa: PLC0415

    def run_command(*words):
        out, err = StringIO(), StringIO()
        with (
            mock.patch.object(sys, "argv", ["conformer-sweep", *map(str, words)]),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            try:
                app.main()
                code = 0
            except SystemExit as ended:
                code = ended.code or 0
        return code, out.getvalue(), err.getvalue()

    return run_command
