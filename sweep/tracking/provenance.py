"""Provenance of a sweep: the code that runs it, the installed packages and the speech."""

import functools
import hashlib
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from core.digests import SpeechLineage

PACKAGES = ("core", "sweep", "search_spaces")
ROOT = Path(__file__).parents[2]
COPIED = (".py", ".toml")
"""Suffixes of the program's files: code, and search spaces."""
DIGITS = 12
GIT_SECONDS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """A split of the speech as MLflow lists it: by name and digest."""

    name: str
    digest: str
    role: str
    """`train`, `dev` or `test`."""
    source: str
    profile: Mapping[str, float]


def source_digests(root: Path = ROOT) -> dict[str, str]:
    """The digest of each source file that can change a trial's result, by its path below the root.

    A file that is removed while the folder is read is left out.
    """
    digests = {}
    for package in ("core", "sweep"):
        # Sorted, as file systems list folders in different orders, and the version is one digest of
        # all.
        for path in sorted((root / package).rglob("*.py")):
            with suppress(FileNotFoundError):
                content = path.read_bytes()
                digests[path.relative_to(root).as_posix()] = hashlib.sha256(content).hexdigest()
    return digests


@functools.cache
def own_sources() -> Mapping[str, str]:
    """The digests of the program's source files at this process's first call."""
    return source_digests()


@functools.cache
def code_version() -> str:
    """A version like `0.1.0 3f2a...`, equal for equal sources, with or without git."""
    digest = hashlib.sha256()
    for name, content in own_sources().items():
        # Names too: code that moves to another file is another version.
        digest.update(f"{name} {content}\n".encode())
    return f"{metadata.version('conformer-sweep')} {digest.hexdigest()[:DIGITS]}"


def changed_sources(before: Mapping[str, str], root: Path = ROOT) -> list[str]:
    """The source files that were edited, added or removed since their digests were computed."""
    now = source_digests(root)
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def copy_program(folder: Path, root: Path = ROOT) -> None:
    """Copy the program's packages into a folder, from which workers can import them."""
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*")):
            if path.suffix in COPIED and path.is_file():
                to = folder / path.relative_to(root)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, to)


@dataclass(frozen=True, kw_only=True, slots=True)
class Code:
    """The program that runs a sweep."""

    version: str
    commit: str = ""
    """Empty outside a git checkout."""
    diff: str = ""
    """Differences of the code from its commit, with new files."""

    @property
    def tags(self) -> dict[str, str]:
        """Tags by the names that MLflow's pages use."""
        tags = {"code.version": self.version}
        if self.commit:
            tags["mlflow.source.git.commit"] = self.commit
            tags["code.dirty"] = str(bool(self.diff)).lower()
        return tags


def code(root: Path = ROOT) -> Code:
    """The program that runs here, with its commit if it is a git checkout of its own."""
    version = code_version()
    # Only its own checkout: installed below somebody's repository, git would name that one's
    # commit.
    commit = _git(root, "rev-parse", "HEAD").strip() if (root / ".git").exists() else ""
    if not commit:
        return Code(version=version)
    diff = _git(root, "diff", "HEAD", "--", *PACKAGES)
    new = _git(root, "ls-files", "--others", "--exclude-standard", "--", *PACKAGES)
    # `git diff HEAD` leaves out files that were never added, which run all the same.
    added = (_git(root, "diff", "--no-index", "--", "/dev/null", name) for name in new.splitlines())
    return Code(version=version, commit=commit, diff=diff + "".join(added))


def packages() -> str:
    """The installed packages, one requirement a line, as pip reads them."""
    lines = {
        f"{package.name}=={package.version}" for package in metadata.distributions() if package.name
    }
    return "\n".join(sorted(lines, key=str.lower)) + "\n"


def datasets(lineage: SpeechLineage) -> list[Dataset]:
    """A sweep's speech, one dataset a split."""
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
    """The output of a git command; empty where git is missing or fails.

    Its exit code is not checked: `diff` returns 1 when files differ.
    """
    git = shutil.which("git")
    if git is None:
        return ""
    try:
        done = subprocess.run(  # noqa: S603  (our own arguments)
            [git, "-C", str(root), *words], capture_output=True, timeout=GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace")
