"""Cache and settings folders of libraries where there is no home directory that can be written.

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

from core import environment
from core.telemetry import disable_telemetry
from sweep.console import make_logs_safe

FOLDER = "home-of-conformer-sweep-{uid}"
"""Below the temporary directory; one for each user, so that the next command has the caches."""
FOLDERS = {
    "MPLCONFIGDIR": "matplotlib",
    "XDG_CACHE_HOME": "cache",
    "XDG_CONFIG_HOME": "config",
    "XDG_DATA_HOME": "data",
}
"""Environment variables with folders of libraries, and their names in that folder."""
TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""Environment variables with the secret of Ray's clusters, which is in the home by default."""


def prepare_process() -> None:
    """Set what libraries read from the environment, before Ray is imported.

    Importing this program sets nothing; whoever starts or resumes a sweep calls this first.
    """
    disable_telemetry(os.environ)
    provide_home(os.environ)
    environment.set_defaults(os.environ)
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # Ray reads it when imported
    make_logs_safe()


def provide_home(environment: MutableMapping[str, str]) -> None:
    """Set folders below the temporary directory, if the home directory cannot be written.

    Called by `prepare_process`, before any library reads them; child processes inherit
    them. A home that can be read stays, as it may hold passwords. Variables that are set stay, too.

    Args:
        environment: of this process, which is changed.
    """
    home = _home(environment)
    if _is_usable(home):
        return
    folder = _own_folder()
    if home is None or not home.is_dir():
        environment["HOME"] = _make_folder(folder / "home")
    for variable, name in FOLDERS.items():
        if not environment.get(variable):
            environment[variable] = _make_folder(folder / name)
    # Matplotlib logs that it lists the fonts in a new folder, and Lhotse that it has no folder.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    logging.getLogger().addFilter(_is_relevant)


def _make_folder(folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    return str(folder)


def _is_relevant(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("We couldn't create lhotse utilities directory")


def provide_token(environment: MutableMapping[str, str]) -> None:
    """Set a file with a secret for a Ray cluster of our own, if the home cannot hold Ray's.

    Not called for a cluster of others, which would refuse the secret.

    Args:
        environment: of this process, which is changed.
    """
    if any(environment.get(name) for name in TOKENS) or _is_usable(_home(environment)):
        return
    file = _own_folder() / "ray-token"
    if not file.is_file():
        # Renamed when it is whole: of two commands that start at once, neither reads half a secret.
        # The mode is set when the file is made, as a later `chmod` would leave a moment to read it.
        tmp_path = file.with_name(f"{file.name}.{os.getpid()}")
        with os.fdopen(os.open(tmp_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
            out.write(secrets.token_hex(32))
        tmp_path.replace(file)
    environment["RAY_AUTH_TOKEN_PATH"] = str(file)


def _home(environment: MutableMapping[str, str]) -> Path | None:
    """The user's home; None where neither the environment nor the system names one."""
    try:
        return Path(environment["HOME"]) if environment.get("HOME") else Path.home()
    except RuntimeError:
        return None


def _is_usable(home: Path | None) -> bool:
    """Whether files can be created in it; tried, as permissions are not the whole answer."""
    if home is None or not home.is_dir():
        return False
    try:
        with tempfile.TemporaryFile(dir=home):
            return True
    except OSError:
        return False


def _own_folder() -> Path:
    """This user's own folder: the usual one, or a new one if others have taken its name."""
    folder = Path(tempfile.gettempdir()) / FOLDER.format(uid=os.getuid())
    try:
        # The temporary directory is everyone's. Another user could have put a link there that leads
        # elsewhere, thus `lstat`, which does not follow it.
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))
    is_ours = status.st_uid == os.getuid() and stat.S_IMODE(status.st_mode) == 0o700
    if stat.S_ISDIR(status.st_mode) and is_ours:
        return folder
    return Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))
