"""Commands that prepare a sweep: init, check and doctor."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from sweep.cli.options import BAD_INPUT, Json, Space, out
from sweep.cli.output.stages import StageReporter


def init(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of a built-in search space, or a new name.")
    ],
    source: Annotated[
        str, typer.Option("--from", help="Built-in search space that a new name copies.")
    ] = "demo",
) -> None:
    """Copy a search space into the current folder, ready to edit."""
    from sweep.config.sweep import find, names

    target = Path(f"{name}.toml")
    if target.exists():
        raise ValueError(f"`{target}` must be new, but exists already.")
    # `init demo` copies the built-in space of that name; `init mine` copies `--from` under a new
    # name.
    text = find(name if name in names() else source).read_text(encoding="utf-8")
    target.write_text(text, encoding="utf-8")
    out.print(f"wrote {target}; conformer-sweep check {target} estimates its cost")


def check(space: Space, as_json: Json = False) -> None:
    """Validate a search space, estimate its cost, and time one training step."""
    with StageReporter("starting") as stages:
        from core.config.trial import NO_SPEECH
        from core.cost_estimate import estimate_cost
        from core.one_shot.by_weights import check as check_without_speech
        from core.one_shot.by_weights import remaining
        from sweep.cli.output.estimate import estimate_lines, estimate_values
        from sweep.cli.output.json_text import as_json as to_json
        from sweep.config.sweep import load
        from sweep.wer_labels import methods_line, refuse_methods

        config = load(space)
        base, without_speech = config.space.base, remaining()
        if base.corpus.name == NO_SPEECH:
            searched = config.space.distributions.get("pruning.method")
            refuse_methods(getattr(searched, "options", ()), without_speech=without_speech)
            check_without_speech(base)
        line = methods_line(base.corpus, without_speech=without_speech)
        cost = estimate_cost(base, announce=stages.announce)
        values = {**estimate_values(config, cost), "methods": line}
    lines = [to_json(values)] if as_json else [*estimate_lines(values), *([line] if line else [])]
    out.print("\n".join(lines), markup=False)


def doctor(as_json: Json = False) -> None:
    """Check what is installed and what this machine has."""
    from sweep.cli.output.json_text import as_json as to_json
    from sweep.doctor import examine

    findings = examine()
    if as_json:
        out.print(to_json([finding.__dict__ for finding in findings]), markup=False)
    for finding in findings if not as_json else []:
        mark = "ok  " if finding.is_fine else "MISS"
        out.print(f"{mark} {finding.name}: {finding.text}", markup=False)
    sys.exit(0 if all(finding.is_fine for finding in findings) else BAD_INPUT)
