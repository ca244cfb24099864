"""MLflow's address, settings and errors. Does not import MLflow."""

import os
import re
import sys
from collections.abc import MutableMapping
from pathlib import Path

from sweep.tracking.retry_queue import first_line

UNKNOWN_USER = ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")
USER, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
DEFAULTS = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # MLflow would repeat a request whose answer was lost, and so create a second run.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
}
"""Environment variables of MLflow that the program sets."""


class TrackingError(RuntimeError):
    """MLflow cannot be opened for this sweep."""


def set_defaults(environment: MutableMapping[str, str]) -> None:
    """Set MLflow's environment variables that the user has not set.

    Args:
        environment: of this process, which is changed.
    """
    for name, value in DEFAULTS.items():
        environment.setdefault(name, value)


def database_uri(folder: Path) -> str:
    """The SQLite database in the sweep's directory."""
    return f"sqlite:///{folder.absolute() / 'mlflow.db'}"


def is_server(uri: str) -> bool:
    """Whether an address is that of a server, which stores artifacts itself."""
    return uri.startswith(("http:", "https:", "databricks"))


def ui_command(folder: Path, port: int) -> list[str]:
    """The command that serves the sweep's MLflow pages on this machine only."""
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", database_uri(folder)),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
    ]


def tracking_error(uri: str, error: Exception) -> TrackingError:
    """MLflow's error in one line, without passwords."""
    address = _without_password(uri)
    code = str(getattr(error, "error_code", ""))
    if code in UNKNOWN_USER:
        is_set = all(os.environ.get(name) for name in (USER, PASSWORD))
        reason = "it does not accept those" if is_set else "they are not set"
        return TrackingError(
            f"MLflow at `{address}` requires authentication: {USER} and {PASSWORD}"
            f" must be those of one of its users, but {reason}."
        )
    if code == "PERMISSION_DENIED":
        return TrackingError(
            f"MLflow at `{address}` must let {USER} write the sweep's experiment, but denies it."
        )
    return TrackingError(
        f"MLflow at `{address}` cannot be opened: {_without_password(first_line(error))}"
    )


def _without_password(text: str) -> str:
    # "postgresql://me:secret@host/db" -> "postgresql://me:***@host/db". MLflow's messages quote the
    # address, so they pass here, too.
    return re.sub(r"(//[^/@\s:]*):[^/@\s]*@", r"\1:***@", text)
