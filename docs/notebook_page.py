"""Makes a page of each notebook in docs/notebooks, from the outputs that are stored in it.

MkDocs calls this file as a hook (`hooks` in mkdocs.yml). Nothing is executed and no package is
needed: `python docs/run_notebook.py` runs the notebook and stores its outputs.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).parent / "notebooks"


def pages() -> dict[str, str]:
    """Returns the Markdown of all notebooks, by their paths under docs/."""
    files = sorted(NOTEBOOKS.glob("*.ipynb"))
    return {f"notebooks/{file.stem}.md": page_of(json.loads(file.read_text())) for file in files}


def page_of(notebook: dict[str, Any]) -> str:
    """Returns a notebook as Markdown: texts, code, and the outputs below it."""
    parts = [part for cell in notebook["cells"] for part in _cell_parts(cell)]
    return "\n\n".join(parts) + "\n"


def _cell_parts(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    yield from map(_output, cell["outputs"])


def _output(output: dict[str, Any]) -> str:
    """Returns a picture, a table or a text; of several forms of one output the richest."""
    data = output.get("data", {})
    if "image/png" in data:
        return f"![Output](data:image/png;base64,{''.join(data['image/png']).replace(chr(10), '')})"
    if "text/html" in data:  # a frame of pandas; the site has its own style of tables
        html = re.sub(r"<style.*?</style>\s*", "", "".join(data["text/html"]), flags=re.DOTALL)
        return html.replace(' border="1" class="dataframe"', "").strip()
    return f"```text\n{''.join(data.get('text/plain', output.get('text', ''))).rstrip()}\n```"


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages; the notebooks stay as files to download."""
    from mkdocs.structure.files import File  # noqa: PLC0415  # only MkDocs calls this

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files
