"""The notebook of the docs runs from its first cell, and its stored outputs are clean."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "notebooks" / "front.ipynb"


def code_cells(file):
    cells = json.loads(file.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def notebook_page():
    spec = importlib.util.spec_from_file_location("notebook_page", ROOT / "docs/notebook_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_by_one_command(tmp_path):
    pytest.importorskip("nbclient", reason="needs the extra `notebook`")
    pytest.importorskip("ipykernel", reason="needs the extra `notebook`")
    out = tmp_path / "front.ipynb"
    subprocess.run(  # noqa: S603  (our own command)
        [sys.executable, "docs/run_notebook.py", str(out)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=1500,
        check=True,
    )

    new, stored = code_cells(out), code_cells(NOTEBOOK)
    assert [cell["source"] for cell in new] == [cell["source"] for cell in stored]
    assert [kinds_of(cell) for cell in new] == [kinds_of(cell) for cell in stored]


def kinds_of(cell):
    return [(output["output_type"], sorted(output.get("data", {}))) for output in cell["outputs"]]


def test_the_stored_notebook_was_run_in_order_without_errors():
    cells = code_cells(NOTEBOOK)

    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(output["output_type"] != "error" for cell in cells for output in cell["outputs"])
    assert any("image/png" in output.get("data", {}) for c in cells for output in c["outputs"])


def test_the_stored_notebook_is_small_and_names_no_machine_path():
    text = NOTEBOOK.read_text()

    assert len(text) < 60_000
    assert re.findall(r"/(?:home|root|tmp|usr|work|opt|Users)/", text) == []


def test_the_page_of_a_notebook_has_its_texts_code_tables_and_pictures(notebook_page):
    page = notebook_page.pages()["notebooks/front.md"]

    assert page.startswith("# ")
    assert "```python\n" in page
    assert "<table>" in page
    assert "<style" not in page
    assert "](data:image/png;base64," in page


def test_the_docs_name_the_command_that_runs_the_notebook():
    assert "python docs/run_notebook.py" in NOTEBOOK.read_text()
    assert "python docs/run_notebook.py" in (ROOT / "docs/guides/python-api.md").read_text()
