"""Whether the graphs of a sweep's front compute what their models do, in ONNX Runtime and torch.

On ragged batches, without padding, with nothing in it, and of 0.1 to 60 s; within 1e-4.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.lib.measurement import arguments, emit
from core import bundle
from core.export.onnx.conversion import export_onnx
from core.export.verify import TOLERANCE, agreement
from core.inference.onnx_session import Graph
from sweep.snapshot import load_snapshot, model_path


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="of a sweep")
    parser.add_argument("--all", action="store_true", help="all finished models, not the front")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [compared(name, folder) for name, folder in models(args.dir, is_all=args.all)]
    gap = max(row["gap"] for row in rows)
    values = {"points": len(rows), "gap": gap, "is_within": gap <= TOLERANCE}
    emit("graphs", rows, values, args)


def models(folder: Path, *, is_all: bool) -> Iterator[tuple[str, Path]]:
    """Points by name, and their bundles."""
    seen = load_snapshot(folder)
    for point in seen.points if is_all else seen.front:
        yield point.name, model_path(f"{folder}:{point.name}")


def compared(name: str, folder: Path) -> dict[str, Any]:
    """One model's sizes, and how far its graph is from it."""
    model = bundle.load(folder).model
    with TemporaryDirectory() as scratch:
        graph = Path(scratch) / "model.onnx"
        export_onnx(model, graph)
        found = agreement(model, Graph(graph))
    params = sum(parameter.numel() for parameter in model.parameters())
    return {"name": name, "params": params, "frames": found.frames, "gap": found.gap}


if __name__ == "__main__":
    main()
