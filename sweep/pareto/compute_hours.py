"""How long machines have worked for a sweep, and how much of that was for nothing. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from sweep.ledger.records import TrialRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Hours:
    """Hours of one device: a GPU where trials have them, else a CPU core.

    The teacher's do not count.
    """

    used: float
    """All attempts of all trials, times the devices that each occupies."""
    wasted: float
    """What came to nothing: all of the trials that failed or were stopped; of others what an
    attempt did after its last report, when it was lost, and what the next one did again."""
    seconds: float
    """Wall time of all trials, side by side or not."""
    device: str
    """`GPU` or `CPU`."""

    def __str__(self) -> str:
        share = self.wasted / self.used if self.used else 0.0
        return f"{self.used:.3g} {self.device} hours, {100 * share:.0f} % of them for nothing"


def hours(records: Iterable[TrialRecord], *, cpus: int, gpus: float) -> Hours:
    """Sum up a sweep.

    Args:
        records: all its trials.
        cpus: cores that a trial occupies.
        gpus: GPUs that a trial occupies; if none, its cores are what counts.
    """
    records = list(records)
    # Two trials of one hour with 4 cores each are 8 CPU hours, side by side or not.
    devices = gpus or cpus
    seconds = sum(record.seconds for record in records)
    wasted = sum(_wasted_seconds(record) for record in records)
    return Hours(
        used=devices * seconds / 3600,
        wasted=devices * wasted / 3600,
        seconds=seconds,
        device="GPU" if gpus else "CPU",
    )


def _wasted_seconds(record: TrialRecord) -> float:
    came_to_nothing = record.state in ("failed", "stopped")
    return record.seconds if came_to_nothing else record.wasted_seconds
