"""A real browser, for pages that people will open in one."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

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
