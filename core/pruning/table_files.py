"""Sensitivity tables as a file, with the digest of what they were computed from."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from core.conformer.axes import Axis
from core.conformer.model import Conformer
from core.files import replaced_files
from core.pruning.calibration import Calibration
from core.pruning.sensitivity import SensitivityTable

VERSION = 1
"""Of the way in which tables are computed: those of another version are computed again."""
_DIGEST = "digest"
_PARTS = ("order", "counts", "increase")


def save_tables(tables: Iterable[SensitivityTable], file: Path, *, digest: str) -> None:
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
    with replaced_files(file.parent) as temporary:
        save_file(tensors, temporary / file.name, metadata={_DIGEST: digest})


def saved_tables(
    new: Iterable[SensitivityTable],
    tables: dict[str, SensitivityTable],
    file: Path,
    *,
    digest: str,
) -> Iterator[SensitivityTable]:
    """Yield tables as they are computed, each saved with those before it.

    Args:
        new: computes them.
        tables: those that there are, by axis; the new ones are added.
        file: written after each.
        digest: of model, speech and settings.
    """
    for table in new:
        tables[table.axis.name] = table
        save_tables(tables.values(), file, digest=digest)
        yield table


def load_tables(file: Path, axes: Sequence[Axis], *, digest: str) -> dict[str, SensitivityTable]:
    """Return the tables that a file holds, by axis; none of a file of another digest.

    Args:
        file: written by `save_tables`, or missing.
        axes: of the model.
        digest: of model, speech and settings.
    """
    if not file.is_file():
        return {}
    try:
        with safe_open(file, framework="pt") as opened:
            if (opened.metadata() or {}).get(_DIGEST) != digest:
                return {}
            tables = [_read(opened, axis) for axis in axes if _is_in(opened, axis)]
    except (SafetensorError, OSError):  # damaged: they are computed anew
        return {}
    return {table.axis.name: table for table in tables if table is not None}


def _is_in(opened: safe_open, axis: Axis) -> bool:
    return {f"{axis.name}/{part}" for part in _PARTS} <= set(opened.keys())  # type: ignore[no-untyped-call]


def tables_digest(model: Conformer, speech: Calibration, settings: str, *, seed: int) -> str:
    """Return a digest of all that tables depend on.

    Args:
        model: the unpruned model.
        speech: calibration speech.
        settings: of the tables, as text.
        seed: of the labels that are drawn.
    """
    digest = hashlib.sha256(f"{VERSION} {settings} {seed}".encode())
    tensors = [tensor for _, tensor in sorted(model.state_dict().items())]
    for tensor in (*tensors, *(part for batch in speech for part in batch)):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


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
