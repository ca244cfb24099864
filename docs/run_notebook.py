"""Runs docs/notebooks/front.ipynb from its first cell and stores its outputs in it.

`python docs/run_notebook.py` is the one command; it needs the extras `demo` and `notebook`. The
notebook runs in a new temporary folder. Outputs of cells with the tag `quiet` (progress, log lines)
are left out, and whatever differs between two equal runs of Jupyter itself (ids, times) as well.
"""

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

NOTEBOOK = Path(__file__).absolute().parent / "notebooks" / "front.ipynb"
CELL_SECONDS = 1200


def main() -> None:
    """Runs the notebook; an argument names another file to write to."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else NOTEBOOK).absolute()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory(prefix="notebook-") as folder, contextlib.chdir(folder):
        NotebookClient(
            notebook,
            timeout=CELL_SECONDS,
            startup_timeout=CELL_SECONDS,
            config=Config(KernelManager={"transport": "ipc"}),  # no open ports
        ).execute()
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    for number, cell in enumerate(notebook.cells):
        cell.metadata = {key: cell.metadata[key] for key in ("tags",) if key in cell.metadata}
        cell.id = f"cell-{number}"
        if cell.cell_type == "code":
            is_quiet = "quiet" in cell.metadata.get("tags", ())
            cell.outputs = [] if is_quiet else list(map(_without_metadata, cell.outputs))
    nbformat.write(notebook, out)


def _without_metadata(output: Any) -> Any:
    output.pop("metadata", None)
    return nbformat.from_dict(output | ({} if output.output_type == "stream" else {"metadata": {}}))


if __name__ == "__main__":
    main()
