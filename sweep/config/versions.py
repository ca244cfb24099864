"""Directories of sweeps that older versions wrote."""

import tomllib

from core.config.base import ConfigError
from core.config.pruning import misplaced_key_lines


def check_version(text: str, *, source: str) -> None:
    """Refuses a directory that was made when methods had no tables: its ledger has old names.

    Raises:
        ConfigError: in one line, where `parse` would have one for each setting.
    """
    try:
        pruning = tomllib.loads(text)["trial"]["pruning"]
        keys = [key for key in pruning if any(misplaced_key_lines({key: None}, ()))]
    except (ValueError, RecursionError, KeyError, TypeError):
        return  # `parse` says what it is
    if keys:
        raise ConfigError(
            f"{source}: `trial.pruning.{keys[0]}` must stand in the table of its method, but"
            " stands where version 0.1 wrote it instead; finish this sweep with version 0.1, or"
            f" start a new one with the settings of sweep.original.toml in [trial.pruning.METHOD]"
        )
