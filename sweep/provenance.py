"""Which sweep this is, by what code it is run, with which packages and on what speech."""

import functools
import hashlib
import re
import shutil
import subprocess
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from core.corpora.placing import whole_file
from core.lineage import SpeechLineage
from core.outside_files import read_text
from core.strict import ConfigError

PACKAGES = ("core", "sweep", "search_spaces")
ROOT = Path(__file__).parent.parent
DIGITS = 12
GIT_SECONDS = 20
LONGEST_ID = 100
"""Bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """Speech as MLflow lists it: by name and digest."""

    name: str
    digest: str
    role: str
    """`train`, `dev` or `test`."""
    source: str
    profile: Mapping[str, float]


@functools.cache
def code_version() -> str:
    """`0.1.0 3f2a...`: equal for equal sources, wherever they lie and whether in git or not."""
    digest = hashlib.sha256()
    for package in ("core", "sweep"):
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(str(path.relative_to(ROOT)).encode())
            digest.update(path.read_bytes())
    return f"{metadata.version('conformer-sweep')} {digest.hexdigest()[:DIGITS]}"


def identity(folder: Path) -> str:
    """By what its runs are known: drawn once, kept in the folder, wherever that moves.

    Raises:
        ConfigError: if what lies there was not drawn by us; it becomes part of questions to MLflow.
    """
    file = folder / "sweep.id"
    if not file.exists():
        with suppress(FileExistsError), whole_file(file) as beside:  # of two, the first counts
            beside.write_text(uuid.uuid4().hex, encoding="utf-8")
    found = read_text(file, largest=LONGEST_ID).strip()
    if not re.fullmatch(r"[0-9a-f]{32}", found):
        raise ConfigError(f"`{file}` must hold 32 digits and letters a to f, but does not.")
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Code:
    """What a sweep is run by."""

    version: str
    commit: str = ""
    """Empty outside a git checkout."""
    diff: str = ""
    """What the code has that its commit has not, new files too."""

    @property
    def tags(self) -> dict[str, str]:
        """By the names that MLflow's pages know."""
        tags = {"code.version": self.version}
        if self.commit:
            tags["mlflow.source.git.commit"] = self.commit
            tags["code.dirty"] = str(bool(self.diff)).lower()
        return tags


def code(root: Path = ROOT) -> Code:
    """The code that runs here, and its commit where it lies in a git checkout of its own."""
    version = code_version()
    commit = _git(root, "rev-parse", "HEAD").strip() if (root / ".git").exists() else ""
    if not commit:
        return Code(version=version)
    diff = _git(root, "diff", "HEAD", "--", *PACKAGES)
    new = _git(root, "ls-files", "--others", "--exclude-standard", "--", *PACKAGES)
    added = (_git(root, "diff", "--no-index", "--", "/dev/null", name) for name in new.splitlines())
    return Code(version=version, commit=commit, diff=diff + "".join(added))


def packages() -> str:
    """All that is installed, a line each, as pip reads it."""
    found = {f"{each.name}=={each.version}" for each in metadata.distributions() if each.name}
    return "\n".join(sorted(found, key=str.lower)) + "\n"


def datasets(lineage: SpeechLineage) -> list[Dataset]:
    """A sweep's speech, a split each."""
    return [
        Dataset(
            name=f"{Path(lineage.corpus).name} {split.split}",
            digest=split.digest,
            role=split.split,
            source=lineage.corpus,
            profile={"utterances": split.num_utterances, "hours": round(split.seconds / 3600, 4)},
        )
        for split in lineage.splits
    ]


def _git(root: Path, *words: str) -> str:
    """What git says; nothing where it cannot. It says no by its exit code when files differ."""
    git = shutil.which("git")
    if git is None:
        return ""
    try:
        done = subprocess.run(  # noqa: S603  (our own words)
            [git, "-C", str(root), *words], capture_output=True, timeout=GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace")
