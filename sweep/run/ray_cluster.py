"""Starts a Ray cluster on this machine, or joins one.

Workers never import files from the driver's current directory. On a cluster of others their working
directory is empty, and they import the installed program; on one of our own it is a copy of the
program at its start, so that a file edited meanwhile changes no trial. Hence all paths are absolute
before they leave the driver.

Private parts of Ray, checked with version 2.60.0 (docs/reference/compat.md): the option `_temp_dir`
of `ray.init`, and everything that is imported from `ray._private`.
"""

import logging
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants, worker
from ray._private.authentication import authentication_token_setup as setup

from core.files import has_own_temporary_folder, temporary_folder
from sweep.run.library_caches import provide_token
from sweep.tracking.provenance import code_version, copy_program

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints a banner whatever the verbosity
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else each driver without a GPU is warned
    # A worker that Ray kills itself ends all of Tune; one that the system kills does not.
    "RAY_memory_monitor_refresh_ms": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # Tune's state is never read
    "TUNE_MAX_PENDING_TRIALS_PG": "1",  # Tune asks for one trial in advance, not more
}
"""Environment variables of Ray that the program sets, unless the user has set them."""

OBJECT_STORE_BYTES = 128 * 2**20
"""Reports are small, and all else is sent as a path; containers often have little shared memory."""
LONGEST_SOCKET = 107
"""Bytes of a socket's path on Linux."""
# 64 bytes with a process id of seven digits: a temporary folder's path may have 43.
SOCKET_IN_SESSION = "/session_2026-11-28_12-00-00_000000_{}/sockets/plasma_store"
MAX_OUTPUT = 4_000
"""Characters of each process's log."""


class ClusterError(ValueError):
    """The cluster cannot run this sweep."""


class OtherProgramError(ClusterError):
    """A machine's program is another than the driver's."""


class LostWorkerError(RuntimeError):
    """An attempt has ended without a fault of the trial, which starts again at no cost."""


def _new_cluster(cpus: int | None) -> dict[str, Any]:
    """Return what Ray is told of a new cluster, and refuses where a cluster is joined."""
    return {
        "num_cpus": cpus,
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
        "_temp_dir": _session_folder(),
    }


@contextmanager
def connect(address: str | None = None, *, cpus: int | None = None) -> Iterator[None]:
    """Connect to the Ray cluster at an address, or to a new one that lives as long as the block.

    Does nothing in a process that is connected already.

    Args:
        address: in Ray's form; `auto` is the cluster that this machine belongs to.
        cpus: cores of a new cluster; by default all.

    Raises:
        ClusterError: if there is no cluster at the address, or it requires a token.
    """
    if ray.is_initialized():
        yield
        return
    # Set before `ray.init`: Ray's own processes inherit them, and read them once at their start.
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if address:
        _enable_token()
    else:
        _use_loopback_only()
        provide_token(os.environ)
    with _silence_lost_nodes(), temporary_folder("program") as working_dir:
        if not address:
            code_version()  # of the sources that are copied now
            copy_program(Path(working_dir))
        try:
            with _block_hangup(), _share_temporary_folder(is_own=not address):
                ray.init(
                    address=address or "local",
                    runtime_env={"working_dir": working_dir},
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **({} if address else _new_cluster(cpus)),
                )
        except (ConnectionError, ray.exceptions.AuthenticationError) as error:
            raise ClusterError(
                f"`--address` must be a Ray cluster that answers, but {address} does not ({error});"
                " if it wants a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN."
            ) from error
        # Tune warns of much that is intended: no metrics to restore, no logger.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        logging.getLogger("ray.train").setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _block_hangup() -> Iterator[None]:
    """Let the processes that start in this block ignore a terminal that is closed.

    They inherit the blocked SIGHUP; this process receives one that came meanwhile after the block.
    """
    # Setting SIG_IGN instead would lose a SIGHUP of this process, which has to end the sweep.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _session_folder() -> str | None:
    """The folder for sockets and logs of our own Ray; the next run removes a killed one's.

    None is Ray's default: if the user has set a folder, or a socket's path would be too long.
    """
    folder = tempfile.gettempdir()
    is_short = len(folder + SOCKET_IN_SESSION.format(os.getpid())) <= LONGEST_SOCKET
    is_set = "RAY_TMPDIR" in os.environ
    return folder if has_own_temporary_folder() and is_short and not is_set else None


@contextmanager
def _share_temporary_folder(*, is_own: bool) -> Iterator[None]:
    """Let processes of our own Ray use this program's temporary folder.

    A cluster that is joined is found through the system's temporary directory, which must stay.
    """
    before = os.environ.get("TMPDIR")
    if is_own and _session_folder() is not None:
        os.environ["TMPDIR"] = tempfile.gettempdir()
    try:
        yield
    finally:
        os.environ.pop("TMPDIR", None)
        if before is not None:
            os.environ["TMPDIR"] = before


def last_worker_output() -> str:
    """The last output of the processes of our own Ray, for the log of one that crashed."""
    node: Any = worker._global_node  # noqa: SLF001  # as is all imported of `ray._private`
    if node is None:
        return ""
    # By age: the worker that crashed has written last. Three, as another may have written since.
    files = sorted(Path(node.get_logs_dir_path()).glob("worker-*.err"), key=os.path.getmtime)
    texts = [file.read_text(errors="replace")[-MAX_OUTPUT:].strip() for file in files]
    return "\n\n".join(text for text in texts[-3:] if text)


def _enable_token() -> None:
    """Use the token on this machine: Ray itself does so only for clusters that it starts."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


@contextmanager
def _silence_lost_nodes() -> Iterator[None]:
    """Keep Ray from printing the last output of a lost node, which no log setting prevents."""
    before = worker.print_to_stdstream
    worker.print_to_stdstream = _print_nothing
    try:
        yield
    finally:
        worker.print_to_stdstream = before


def _print_nothing(*_: Any, **__: Any) -> None:
    pass


def _use_loopback_only() -> None:
    """Listen on the loopback alone: nobody else needs to reach a cluster of one machine.

    Ray has a switch for it, named after the systems where it is on by default, and reads it when it
    is imported.
    """
    os.environ.setdefault(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "0")
    if os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] == "0":
        ray_constants.ENABLE_RAY_CLUSTER = False


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for files of Tune's that nobody reads: the ledger is the state."""
    return temporary_folder("tune")
