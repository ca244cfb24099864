"""Sensitivity tables as a file, with the digest of what they were computed from."""

from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from core.conformer.axes import Axis
from core.files import whole_file
from core.pruning.sensitivity import SensitivityTable

_DIGEST = "digest"
_PARTS = ("order", "counts", "increase")


def save_tables(tables: Sequence[SensitivityTable], file: Path, *, digest: str) -> None:
    """Write tables completely or not at all.

    Args:
        tables: of different axes.
        file: to write.
        digest: of model, speech and settings.
    """
    tensors = {
        f"{table.axis.name}/{part}": getattr(table, part).contiguous()
        for table in tables
        for part in _PARTS
    }
    with whole_file(file) as temporary:
        save_file(tensors, temporary, metadata={_DIGEST: digest})


def load_tables(
    file: Path, axes: Sequence[Axis], *, digest: str
) -> tuple[SensitivityTable, ...] | None:
    """Return the tables of some axes; None if the file lacks one or is of another digest.

    Args:
        file: written by `save_tables`, or missing.
        axes: of the model, which have or have not a table.
        digest: of model, speech and settings.
    """
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            if (opened.metadata() or {}).get(_DIGEST) != digest:
                return None
            tables = [_read(opened, axis) for axis in axes]
    except (SafetensorError, OSError):  # damaged, or without an axis: they are computed anew
        return None
    whole = tuple(table for table in tables if table is not None)
    return whole if len(whole) == len(axes) else None


def _read(opened: safe_open, axis: Axis) -> SensitivityTable | None:
    """Return the table of an axis, or None if it cannot be one."""
    order, counts, increase = (
        opened.get_tensor(f"{axis.name}/{part}")  # type: ignore[no-untyped-call]
        for part in _PARTS
    )
    # The order names each unit once; levels rise from 1 to at most all units; each has a value.
    is_order = order.shape == (axis.size,) and order.sort().values.tolist() == list(
        range(axis.size)
    )
    levels = counts.tolist() if counts.dim() == 1 else []
    is_rising = bool(levels) and levels == sorted(set(levels))
    has_values = increase.shape == counts.shape and bool(increase.isfinite().all())
    if not (is_order and is_rising and has_values and levels[0] > 0 and levels[-1] <= axis.size):
        return None
    return SensitivityTable(axis=axis, order=order, counts=counts, increase=increase.double())
