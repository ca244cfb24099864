"""The beginning of a sweep: its directory from a search space, or an existing one by a new space.

Nothing runs here; `sweep.run.driver.run` does that next.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.config.trial import Decoder
from sweep.config.consent import give_consent
from sweep.config.diff import changes, check
from sweep.config.paths import check_corpus
from sweep.config.sweep import (
    CONFIG_FILE,
    SweepConfig,
    create,
    load,
    load_table,
    open_config,
    read_space,
    rewrite,
)
from sweep.storage.lock import sweep_lock
from sweep.wer_labels import refuse_sweep

DEMO = "demo"
"""The search space of `conformer-sweep demo`."""
Space = str | Mapping[str, Any]
"""A search space: the path or the name of a TOML file, or the table that such a file holds."""


def create_or_adopt_sweep(
    space: Space, folder: Path, *, trials: int | None = None, hours: float | None = None
) -> None:
    """Create a sweep, or give the sweep that the directory holds a changed search space.

    Args:
        space: the search space.
        folder: the sweep's directory.
        trials: number of trials, instead of the search space's.
        hours: limit of all trials together in hours, instead of the search space's.

    Raises:
        ConfigError: if the search space is invalid, or changes what must stay the same.
        LockedError: if the sweep runs and the search space changes it.
    """
    if (folder / CONFIG_FILE).exists():
        adopt_space(space, folder.resolve(), trials=trials, hours=hours)
    else:
        create_sweep(space, folder, trials=trials, hours=hours)


def create_sweep(
    space: Space, folder: Path, *, trials: int | None = None, hours: float | None = None
) -> None:
    """Write the directory of a new sweep; see `create_or_adopt_sweep` for the arguments.

    Raises:
        ConfigError: if the search space is invalid, or the directory holds a sweep.
    """
    config, text = _load(space, folder)
    config = config.with_budget(**_without_none(trials=trials, hours=hours))
    refuse_sweep(config.space.base.corpus)
    create(folder.resolve(), config, text or config.toml())
    give_consent(folder, config)


def create_demo(folder: Path, decoder: Decoder) -> None:
    """Write the directory of the demo's sweep.

    Args:
        folder: new.
        decoder: what its models decode with; a transducer has a CTC head beside it.

    Raises:
        ConfigError: if the directory holds a sweep.
    """
    if decoder == "ctc":
        create_sweep(DEMO, folder)
        return
    space = load(DEMO).model_dump()
    space["trial"]["model"] |= {"decoder": decoder, "auxiliary_ctc": True}
    create_sweep(space, folder)


def adopt_space(
    space: Space, folder: Path, *, trials: int | None = None, hours: float | None = None
) -> None:
    """Give an existing sweep a search space that may have changed; the driver reports the changes.

    See `create_or_adopt_sweep` for the arguments.

    Raises:
        ConfigError: if the search space is invalid, or changes what must stay the same.
        LockedError: if the sweep runs and the search space changes it.
    """
    before = open_config(folder)
    budget = _without_none(trials=trials, hours=hours, name=before.sweep.name)
    config, _ = _load(space, folder)
    config = config.with_budget(**budget)
    differences = changes(before, config)
    check(differences)
    if differences:
        with sweep_lock(folder):
            rewrite(folder, config)
    give_consent(folder, config)


def _load(space: Space, folder: Path) -> tuple[SweepConfig, str]:
    """Returns a search space and the text of its file, which is read once; no text of a table."""
    if not isinstance(space, str):
        return load_table(space, name=folder.name), ""
    config, _, text = read_space(space)
    check_corpus(config.space.base.corpus)
    return config, text


def _without_none(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
