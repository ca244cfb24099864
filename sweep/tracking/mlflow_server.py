"""Where MLflow is, and what to say of one that cannot be opened."""

import os
import re
import sys
from pathlib import Path

from sweep.tracking.retry_queue import first_line

UNKNOWN_USER = ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")
USER, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"


class TrackingError(RuntimeError):
    """MLflow cannot be opened for this sweep."""


def database_uri(folder: Path) -> str:
    """The SQLite database in the sweep's directory."""
    return f"sqlite:///{folder.absolute() / 'mlflow.db'}"


def is_server(uri: str) -> bool:
    """Whether others answer there, and keep artifacts where they like."""
    return uri.startswith(("http:", "https:", "databricks"))


def ui_command(folder: Path, port: int) -> list[str]:
    """The command that serves the sweep's MLflow pages to this machine alone."""
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", database_uri(folder)),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
    ]


def cannot_open(uri: str, error: Exception) -> TrackingError:
    """The error in one line, without anybody's password."""
    place = _without_password(uri)
    code = str(getattr(error, "error_code", ""))
    if code in UNKNOWN_USER:
        is_set = all(os.environ.get(name) for name in (USER, PASSWORD))
        instead = "it does not know those" if is_set else "they are not set"
        return TrackingError(
            f"MLflow at `{place}` asks who is there: {USER} and {PASSWORD}"
            f" must be a user's whom it knows, but {instead}."
        )
    if code == "PERMISSION_DENIED":
        return TrackingError(
            f"MLflow at `{place}` must let {USER} write the sweep's experiment, but denies it."
        )
    return TrackingError(
        f"MLflow at `{place}` cannot be opened: {_without_password(first_line(error))}"
    )


def _without_password(text: str) -> str:
    return re.sub(r"(//[^/@\s:]*):[^/@\s]*@", r"\1:***@", text)
