"""Which sweep this is, and by what code it is run."""

import functools
import hashlib
import uuid
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


def identity(folder: Path) -> str:
    """By what its runs are known: drawn once, kept in the folder, wherever that moves."""
    file = folder / "sweep.id"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(".new")
        beside.write_text(uuid.uuid4().hex, encoding="utf-8")
        beside.replace(file)
    return file.read_text(encoding="utf-8").strip()
