"""The table of latencies that all trials go by: measured beside the teacher, or given."""

from pathlib import Path

from core.config.base import ConfigError
from core.config.trial import TrialConfig
from core.conformer.shape import Shape
from core.latency.measure import latency_table
from core.pruning.latency_table import LatencyTable
from core.runtime import select_device

FILE = "latency/table.json"
"""Of the teacher's folder."""


def needs_table(config: TrialConfig) -> bool:
    return "latency" in config.pruning.targets


def is_ready(config: TrialConfig, folder: Path) -> bool:
    """Whether nothing is left to measure beside the teacher."""
    return (
        not needs_table(config) or bool(config.pruning.latency_table) or (folder / FILE).is_file()
    )


def measure(config: TrialConfig, folder: Path, shape: Shape) -> None:
    """Leave a table beside the teacher, if one is asked for and there is none."""
    if is_ready(config, folder):
        return
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
    """The table that a trial goes by; None where latency is no target of it.

    Raises:
        ConfigError: if it is missing or damaged.
    """
    if not needs_table(config):
        return None
    given = config.pruning.latency_table
    if not given and not (folder / FILE).is_file():
        raise ConfigError(
            f"`{folder / FILE}` must be there, as latency is a target, but is not; name a table as"
            " `pruning.latency_table`, or begin another sweep"
        )
    return LatencyTable.load(Path(given) if given else folder / FILE)
