"""Starting a Ray cluster on this machine, or joining one.

Workers never import what happens to lie where the driver was started. On a cluster of others their
working directory is an empty one, and they import what is installed; on one of our own it is a copy
of the program as it was at the start, so that a file saved meanwhile changes no trial. Hence all
paths are absolute before they leave the driver.
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
    # Ray's own killing of a worker is an error that ends all of Tune; the system's is heard by it.
    "RAY_memory_monitor_refresh_ms": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # of Tune's state nothing is ever read
    "TUNE_MAX_PENDING_TRIALS_PG": "1",  # one trial is asked for while others run, not more
}
"""Ray's settings by environment; a user may overrule them."""

OBJECT_STORE_BYTES = 128 * 2**20
"""Reports are small, and all else goes by path; containers often have little shared memory."""
LONGEST_SOCKET = 107
"""Bytes of a socket's path on Linux."""
SOCKET_IN_SESSION = "/session_2026-11-28_12-00-00_000000_{}/sockets/plasma_store"
LAST_WORDS = 4_000
"""Characters of each process's log."""


class ClusterError(ValueError):
    """The cluster cannot run this sweep."""


class OtherProgramError(ClusterError):
    """A machine's program is another than the driver's."""


class LostWorkerError(RuntimeError):
    """An attempt is over though nothing is wrong with the trial: it begins again, at no cost."""


@contextmanager
def connected(address: str | None = None, *, cpus: int | None = None) -> Iterator[None]:
    """Be connected to Ray: to the cluster at an address, or to one that lives as long as this.

    Who is connected already stays so.

    Args:
        address: as Ray takes it, `auto` for the cluster that this machine belongs to.
        cpus: cores of a cluster of one's own; by default all.

    Raises:
        ClusterError: if there is no cluster at the address, or it does not let us in.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if address:
        _show_token()
    else:
        _stay_inside()
        provide_token(os.environ)
    worker.print_to_stdstream = _unprinted
    with temporary_folder("program") as working_dir:
        if not address:
            code_version()  # of the sources that are copied now
            copy_program(Path(working_dir))
        local: dict[str, Any] = (
            {}
            if address
            else {
                "num_cpus": cpus,
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
                "_temp_dir": _session_folder(),
            }
        )
        try:
            with _hangup_withheld(), _temporary_files_inside(is_own=not address):
                ray.init(
                    address=address or "local",
                    runtime_env={"working_dir": working_dir},
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **local,
                )
        except (ConnectionError, ray.exceptions.AuthenticationError) as error:
            raise ClusterError(
                f"`--address` must be a Ray cluster that answers, but {address} does not ({error});"
                " if it wants a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN."
            ) from error
        # Tune warns of much that is as it should be: no metrics to restore, no logger at all.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        logging.getLogger("ray.train").setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _hangup_withheld() -> Iterator[None]:
    """Start processes that a closed terminal does not end: it signals all that belong to it.

    What starts meanwhile never hears SIGHUP; this process hears one that came as soon as it is
    over.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _session_folder() -> str | None:
    """Where a Ray of our own keeps sockets and logs, so that the next run can clear a killed one's.

    None is Ray's default: where a user names a place, and where a socket's path would be too long.
    """
    folder = tempfile.gettempdir()
    is_short = len(folder + SOCKET_IN_SESSION.format(os.getpid())) <= LONGEST_SOCKET
    is_given = "RAY_TMPDIR" in os.environ
    return folder if has_own_temporary_folder() and is_short and not is_given else None


@contextmanager
def _temporary_files_inside(*, is_own: bool) -> Iterator[None]:
    """Let processes of a Ray of our own have their temporary files where ours are.

    One that is joined is found by the system's temporary directory, which must stay what it is.
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


def last_words() -> str:
    """What processes of a Ray of our own said last: all that is left of one that crashed."""
    node: Any = worker._global_node  # noqa: SLF001  # as is all imported of `ray._private`
    if node is None:
        return ""
    files = sorted(Path(node.get_logs_dir_path()).glob("worker-*.err"), key=os.path.getmtime)
    texts = [file.read_text(errors="replace")[-LAST_WORDS:].strip() for file in files]
    return "\n\n".join(text for text in texts[-3:] if text)


def _show_token() -> None:
    """Use a token that lies here: Ray itself does so only for clusters that it starts."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _unprinted(*_: Any, **__: Any) -> None:
    """Ray prints the last words of a lost machine, whatever it was told of logs."""


def _stay_inside() -> None:
    """Listen on the loopback alone: nobody else needs to reach a cluster of one machine.

    Ray has a switch for it, under the name of the systems where it is on by default, and has read
    it before we could set it.
    """
    os.environ.setdefault(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "0")
    if os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] == "0":
        ray_constants.ENABLE_RAY_CLUSTER = False


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """Where Tune may write what nobody reads: the ledger is the state."""
    return temporary_folder("tune")
