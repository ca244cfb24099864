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
from core.config.trial import TrialConfig
from core.files import atomic_folder, atomic_write
from core.outside_files import read_json
from sweep.config.diff import leaves
from sweep.config.distributions import Distribution
from sweep.config.space import METHOD, SearchSpace
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
    outcomes: list[dict[str, Any]] = []
    for old in olds:
        check(config, old)
        outcomes += outcomes_in_space(config, old)
        _take_along(folder, old)
    atomic_write(folder / FILE, json.dumps(outcomes))
    return len(outcomes)


def warm_start_records(folder: Path) -> list[TrialRecord]:
    """Returns the outcomes of the older sweeps as finished trials, numbered from -1 down.

    Raises:
        ConfigError: if the file is damaged.
    """
    if not (folder / FILE).is_file():
        return []
    try:
        return [_record(index, values) for index, values in enumerate(read_json(folder / FILE))]
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"`{folder / FILE}` must hold what other sweeps found, but: {error!r};"
            " without the file the sweep begins from nothing."
        ) from None


def _record(index: int, values: Mapping[str, Any]) -> TrialRecord:
    return parse_record(
        {
            # -1, -2, ...: never the number of one of this sweep's trials.
            "number": -1 - index,
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
        and name in now  # tables of methods that the new sweep does not use decide nothing
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
        method = whole.pruning.method
        # The control was not drawn from the space, so a model cannot learn from it.
        if method == "dense" or not _can_use(config.space, method):
            continue
        params = _params_in(config.space, whole)
        if all(searched[name].holds(value) for name, value in params.items()):
            yield {"params": params, "outcome": asdict(record.outcomes[0])}


def _can_use(space: SearchSpace, method: str) -> bool:
    leaf = space.distributions.get(METHOD)
    return space.base.pruning.method == method if leaf is None else leaf.holds(method)


def _params_in(space: SearchSpace, trial: TrialConfig) -> dict[str, Any]:
    """Returns the values that a trial has of the leaves that it would have in another space."""
    values = trial.model_dump()
    selectors = {METHOD: trial.pruning.method}
    start = f"pruning.{trial.pruning.method}.start_from"
    if start in space.distributions:
        selectors[start] = _leaf(values, start)
    return {name: _leaf(values, name) for name in space.active_leaves(selectors)}


def _leaf(values: Mapping[str, Any], name: str) -> Any:
    for part in name.split("."):
        values = values[part]
    return values


def _take_along(folder: Path, old: SweepSnapshot) -> None:
    fetch_missing(old.folder, *SHARED_FOLDERS)
    for name in SHARED_FOLDERS:
        if (old.folder / name).is_dir() and not (folder / name).exists():
            # Copied, as the old sweep may be deleted or moved.
            with atomic_folder(folder / name) as tmp_path:
                shutil.copytree(old.folder / name, tmp_path, dirs_exist_ok=True)
