"""By what code a sweep is run: the program's version, and a digest of its sources."""

import functools
import hashlib
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("core", "sweep")
ROOT = Path(__file__).parent.parent
DIGITS = 12


@functools.cache
def code_version() -> str:
    """`0.1.0 3f2a...`: equal for equal sources, wherever they lie and whether in git or not."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(str(path.relative_to(ROOT)).encode())
            digest.update(path.read_bytes())
    return f"{version('conformer-sweep')} {digest.hexdigest()[:DIGITS]}"
