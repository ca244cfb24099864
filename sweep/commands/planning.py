"""Commands from before a sweep: init, check, doctor."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from sweep.commands.terminal import BAD_INPUT, Json, Space, out


def init(
    name: Annotated[str, typer.Argument(help="One of search_spaces, or a new name.")],
    source: Annotated[str, typer.Option("--from", help="What a new name starts from.")] = "demo",
) -> None:
    """Copy a search space into this folder, to edit it."""
    from sweep.config import find, names

    target = Path(f"{name}.toml")
    if target.exists():
        raise ValueError(f"`{target}` must be new, but is there already.")
    text = find(name if name in names() else source).read_text(encoding="utf-8")
    target.write_text(text, encoding="utf-8")
    out.print(f"wrote {target}; conformer-sweep check {target} says what it would cost")


def check(space: Space, as_json: Json = False) -> None:
    """Validate a search space, say what it would cost, and take one tiny step."""
    from core.price import price
    from sweep.config import load
    from sweep.views import as_json as to_json
    from sweep.views import price_lines, price_values

    config = load(space)
    values = price_values(config, price(config.space.base))
    lines = [to_json(values)] if as_json else price_lines(values)
    out.print("\n".join(lines), markup=False)


def doctor(as_json: Json = False) -> None:
    """Say what is installed and what this machine has."""
    from sweep.doctor import examine
    from sweep.views import as_json as to_json

    findings = examine()
    if as_json:
        out.print(to_json([finding.__dict__ for finding in findings]), markup=False)
    for finding in findings if not as_json else []:
        mark = "ok  " if finding.is_fine else "MISS"
        out.print(f"{mark} {finding.name}: {finding.text}", markup=False)
    sys.exit(0 if all(finding.is_fine for finding in findings) else BAD_INPUT)
