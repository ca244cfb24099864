"""Which sweeps may run programs or open addresses that manifests name: only those started here.

`corpus.allow` counts when the user starts a sweep with a file that sets it. A sweep's directory may
come from anyone (an archive, a copy, an object store), so what its sweep.toml says is not enough:
each consent is kept in the user's own state, outside of every sweep.
"""

import hashlib
import json
import os
from pathlib import Path

from core.config.base import ConfigError
from core.config.trial import CorpusConfig
from core.files import atomic_write
from sweep.config.sweep import CONFIG_FILE, SweepConfig


def give_consent(folder: Path, config: SweepConfig) -> None:
    """Notes that the user started the sweep with a file of their own that says so."""
    corpus = config.space.base.corpus
    if corpus.allow:
        atomic_write(_note(folder), _digest(corpus))


def check_consent(folder: Path, config: SweepConfig) -> None:
    """Refuses what the user has not consented to, in this folder or in one around it.

    Raises:
        ConfigError: if the sweep's own file is all that says so.
    """
    corpus = config.space.base.corpus
    if not corpus.allow:
        return
    folder = folder.resolve()
    # `confirm` lies in the directory of the sweep that it confirms, and needs no consent of its
    # own.
    for ancestor in (folder, *folder.parents):
        note = _note(ancestor)
        if note.is_file() and note.read_text(encoding="utf-8") == _digest(corpus):
            return
    raise ConfigError(
        f"`corpus.allow` must come from a file of your own, but is {corpus.allow} in"
        f" `{folder / CONFIG_FILE}`, which was not started here; take it out there, or go on with"
        f" `conformer-sweep run YOUR.toml --dir {folder}`, where YOUR.toml sets it."
    )


def _note(folder: Path) -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    # A path may be longer than a file's name, and has slashes; 128 bits of its digest do instead.
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    return Path(state) / "conformer-sweep" / "consent" / name


def _digest(corpus: CorpusConfig) -> str:
    """Returns the digest of a corpus: a consent is for one corpus alone."""
    return hashlib.sha256(json.dumps(corpus.model_dump()).encode()).hexdigest()
