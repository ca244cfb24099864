"""A sweep that begins with what others found: its sampler knows their outcomes at once.

What is fixed in both must be equal, or the outcomes would be of another kind. The teacher and the
prepared speech are taken along where they are the same.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.config.base import ConfigError
from core.files import atomic_folder, atomic_write
from core.outside_files import read_json
from sweep.config.diff import leaves
from sweep.config.space import Distribution
from sweep.config.sweep import SHARED_FOLDERS, SweepConfig
from sweep.ledger.records import TrialRecord, parse_record
from sweep.snapshot import SweepSnapshot
from sweep.storage.working_copy import fetch_missing

FILE = "before.json"


def begin(folder: Path, config: SweepConfig, olds: Iterable[SweepSnapshot]) -> int:
    """Leave in a new sweep's directory what the old ones found; gives how many outcomes.

    Called before the directory has a config, so that a kill leaves no sweep without them.

    Raises:
        ConfigError: if an old sweep holds something else fixed, naming it.
    """
    found: list[dict[str, Any]] = []
    for old in olds:
        check(config, old)
        found += outcomes_in_space(config, old)
        _take_along(folder, old)
    atomic_write(folder / FILE, json.dumps(found))
    return len(found)


def warm_start_records(folder: Path) -> list[TrialRecord]:
    """What the sweep began with, as finished trials numbered from -1 down: they are not its own.

    Raises:
        ConfigError: if the file is damaged.
    """
    if not (folder / FILE).is_file():
        return []
    try:
        return [_recalled(place, each) for place, each in enumerate(read_json(folder / FILE))]
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"`{folder / FILE}` must hold what other sweeps found, but: {error!r};"
            " without the file the sweep begins from nothing."
        ) from None


def _recalled(place: int, values: Mapping[str, Any]) -> TrialRecord:
    return parse_record(
        {
            "number": -1 - place,
            "state": "finished",
            "params": values["params"],
            "outcomes": [values["outcome"]],
            "curve": (),
        }
    )


def check(config: SweepConfig, old: SweepSnapshot) -> None:
    """Refuse outcomes of another kind.

    Raises:
        ConfigError: one line a culprit.
    """
    before, now = dict(leaves(old.config)), dict(leaves(config))
    culprits = [
        f"`{name}` must be the same in `{old.folder}`, {now[name]}, but is {value} there instead."
        for name, value in before.items()
        if name.startswith("trial.")
        and not name.startswith("trial.runtime.")
        and not isinstance(value, Distribution)
        and not isinstance(now[name], Distribution)
        and value != now[name]
    ]
    if culprits:
        raise ConfigError("\n".join(culprits))


def outcomes_in_space(config: SweepConfig, old: SweepSnapshot) -> Iterator[dict[str, Any]]:
    """Outcomes of an old sweep that lie in the new one's space, as plain values."""
    searched = config.space.distributions
    for record in old.records:
        if record.state != "finished":
            continue
        whole = old.config.space.trial_config(record.settings)
        params = {name: _leaf(whole.model_dump(), name) for name in searched}
        is_control = whole.pruning.method == "dense"
        if not is_control and all(searched[name].holds(params[name]) for name in searched):
            yield {"params": params, "outcome": asdict(record.outcomes[0])}


def _leaf(values: Mapping[str, Any], name: str) -> Any:
    for part in name.split("."):
        values = values[part]
    return values


def _take_along(folder: Path, old: SweepSnapshot) -> None:
    fetch_missing(old.folder, *SHARED_FOLDERS)
    for name in SHARED_FOLDERS:
        if (old.folder / name).is_dir() and not (folder / name).exists():
            with atomic_folder(folder / name) as beside:
                shutil.copytree(old.folder / name, beside, dirs_exist_ok=True)
