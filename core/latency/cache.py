"""The latency table of a sweep: measured and stored with the teacher, or given as a file."""

from pathlib import Path

from core.config.base import ConfigError
from core.config.trial import TrialConfig
from core.conformer.shape import Shape
from core.latency.measure import latency_table
from core.pruning.latency_table import LatencyTable
from core.runtime import select_device

FILE = "latency/table.json"
"""Path of the table in the teacher's folder."""


def needs_table(config: TrialConfig) -> bool:
    return "latency" in config.pruning.targets


def is_ready(config: TrialConfig, folder: Path) -> bool:
    """Whether no table has to be measured."""
    return (
        not needs_table(config) or bool(config.pruning.latency_table) or (folder / FILE).is_file()
    )


def measure(config: TrialConfig, folder: Path, shape: Shape) -> None:
    """Measure a table and store it with the teacher, if one is needed and missing."""
    if is_ready(config, folder):
        return
    # Measured once a sweep, next to the teacher: trials that are timed at different moments would
    # go by different tables.
    table = latency_table(
        shape,
        utterance_seconds=config.pruning.utterance_seconds,
        repeats=config.evaluation.latency_repeats,
        threads=config.runtime.threads,
        device=select_device(config),
        multiple_of=config.pruning.multiple_of,
    )
    table.save(folder / FILE)


def open_table(config: TrialConfig, folder: Path) -> LatencyTable | None:
    """Return the table of a trial; None if latency is no target.

    Raises:
        ConfigError: if it is missing or damaged.
    """
    if not needs_table(config):
        return None
    path = config.pruning.latency_table
    if not path and not (folder / FILE).is_file():
        raise ConfigError(
            f"`{folder / FILE}` must exist, as latency is a target, but does not; name a table as"
            " `pruning.latency_table`, or start another sweep"
        )
    return LatencyTable.load(Path(path) if path else folder / FILE)
