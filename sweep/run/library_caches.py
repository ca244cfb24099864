"""A place for what libraries keep in a home directory, where there is none that can be written to.

Matplotlib, Ray and others keep caches and settings in the home. In containers and batch jobs it is
often missing or read-only; each library then warns in its own way, or fails.
"""

import logging
import os
import secrets
import stat
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

from core.telemetry import disable_telemetry
from sweep.console import make_logs_safe

FOLDER = "home-of-conformer-sweep-{uid}"
"""Below the temporary directory; one for each user, so that caches serve the next command, too."""
PLACES = {
    "MPLCONFIGDIR": "matplotlib",
    "XDG_CACHE_HOME": "cache",
    "XDG_CONFIG_HOME": "config",
    "XDG_DATA_HOME": "data",
}
"""Environment variables by which libraries are told of a place, and its name in that folder."""
TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""By which Ray is told of its clusters' secret; else it keeps that in the home."""


def prepare_process() -> None:
    """Set what libraries read from the environment, before Ray is imported.

    Importing this program sets nothing; whoever starts or resumes a sweep calls this first.
    """
    disable_telemetry(os.environ)
    provide_home(os.environ)
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # Ray reads it when imported
    make_logs_safe()


def provide_home(environment: MutableMapping[str, str]) -> None:
    """Name places below the temporary directory, if the home cannot be written to.

    Called by `prepare_process`, before any library looks; child processes inherit the
    names. A home that can be read is kept, as passwords may lie in it. What is named already stays.

    Args:
        environment: of this process, which is changed.
    """
    home = _home(environment)
    if _is_usable(home):
        return
    folder = _own_folder()
    if home is None or not home.is_dir():
        environment["HOME"] = _made(folder / "home")
    for name, place in PLACES.items():
        if not environment.get(name):
            environment[name] = _made(folder / place)
    # Of a new place Matplotlib tells that it lists the fonts, and Lhotse that it has none.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    logging.getLogger().addFilter(_is_news)


def _made(folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    return str(folder)


def _is_news(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("We couldn't create lhotse utilities directory")


def provide_token(environment: MutableMapping[str, str]) -> None:
    """Name a file with a secret for a Ray cluster of our own, if the home cannot hold Ray's.

    Not for a cluster of others: it would refuse ours.

    Args:
        environment: of this process, which is changed.
    """
    if any(environment.get(name) for name in TOKENS) or _is_usable(_home(environment)):
        return
    file = _own_folder() / "ray-token"
    if not file.is_file():
        beside = file.with_name(f"{file.name}.{os.getpid()}")
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as to:
            to.write(secrets.token_hex(32))
        beside.replace(file)
    environment["RAY_AUTH_TOKEN_PATH"] = str(file)


def _home(environment: MutableMapping[str, str]) -> Path | None:
    """The user's home; None where neither the environment nor the system names one."""
    try:
        return Path(environment["HOME"]) if environment.get("HOME") else Path.home()
    except RuntimeError:
        return None


def _is_usable(home: Path | None) -> bool:
    """Whether files can be made in it; whether the user may is not the whole answer."""
    if home is None or not home.is_dir():
        return False
    try:
        with tempfile.TemporaryFile(dir=home):
            return True
    except OSError:
        return False


def _own_folder() -> Path:
    """This user's own folder: the known one, or a new one where others have taken its name."""
    folder = Path(tempfile.gettempdir()) / FOLDER.format(uid=os.getuid())
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))
    is_ours = found.st_uid == os.getuid() and stat.S_IMODE(found.st_mode) == 0o700
    if stat.S_ISDIR(found.st_mode) and is_ours:
        return folder
    return Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))
