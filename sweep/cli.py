"""The command line: arguments in, one call each, and the only print.

What a command needs is imported inside it: Ray, torch and MLflow take seconds that `--help` and a
misspelt option should not.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    name="conformer-sweep",
    help="Sweep structured pruning of a Conformer recogniser: word error rate against FLOPs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

BAD_INPUT, RESUMABLE = 2, 75
WIDE = 160
"""Columns of a table that goes into a file."""
DEMO_FOLDER = Path("demo-sweep")

Space = Annotated[str, typer.Argument(help="A TOML file, or the name of one in search_spaces.")]
Sweep = Annotated[Path, typer.Argument(metavar="DIR", help="The sweep's directory.")]
Model = Annotated[str, typer.Argument(help="A bundle's folder, or DIR:TRIAL of a sweep.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON value for scripts.")]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster to join; `auto` is the one of this machine.")
]


def main() -> None:
    """Run a command; what a person got wrong is one line and exit code 2."""
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # Ray reads it when imported
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(RESUMABLE)
    except (ValueError, ConnectionError, FileNotFoundError, PermissionError) as error:
        _end(str(error), BAD_INPUT)
    except OSError as error:  # a full disk, most often: what is done is kept
        _end(str(error), RESUMABLE)
    except RuntimeError as error:
        if not type(error).__module__.startswith(("core.", "sweep.")):
            raise  # a fault of the program, to be reported whole
        _end(str(error), getattr(error, "exit_code", BAD_INPUT))


def _end(text: str, code: int) -> None:
    for line in text.splitlines():
        err.print(f"error: {line}", markup=False)
    sys.exit(code)


def _print_table(table: Table) -> None:
    console = out if out.is_terminal else Console(width=WIDE)
    console.print(table)


# ---- running ----


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--dir", help="Where to.")] = DEMO_FOLDER,
) -> None:
    """The whole story on this machine: speech, teacher, sweep, front. Minutes; goes on if there."""
    from sweep.config import CONFIG_FILE

    if not (folder / CONFIG_FILE).exists():
        _create("demo", folder, None)
    _run(folder, None)


@app.command()
def run(
    space: Space,
    folder: Annotated[Path | None, typer.Option("--dir", help="Where to; runs/NAME.")] = None,
    trials: Annotated[int | None, typer.Option(help="Instead of the file's number.")] = None,
    address: Address = None,
) -> None:
    """Start a sweep."""
    from sweep.config import find

    folder = folder or Path("runs") / find(space).stem
    _create(space, folder, trials)
    _run(folder, address)


@app.command()
def resume(folder: Sweep, address: Address = None) -> None:
    """Go on with a sweep, whatever ended it."""
    _run(folder, address)


def _create(space: str, folder: Path, trials: int | None) -> None:
    from sweep.config import create, find, load

    config = load(space)
    if trials is not None:
        config = config.with_trials(trials)
    create(folder.resolve(), config, find(space).read_text(encoding="utf-8"))


def _run(folder: Path, address: str | None) -> None:
    from sweep.driver import run as run_segment

    code = run_segment(folder, address=address)
    _show_end(folder.resolve(), code)
    sys.exit(code)


def _show_end(folder: Path, code: int) -> None:
    from sweep.figures import front_table
    from sweep.front import pareto_front
    from sweep.views import see, status_lines, status_values

    seen = see(folder)
    points = pareto_front(seen.points)
    if points:
        _print_table(front_table(points, title="Pareto front"))
        out.print(f"page     {folder}/front/front.html", markup=False)
        out.print(f"picture  {folder}/front/front.png", markup=False)
        out.print(f"MLflow   conformer-sweep ui {folder}", markup=False)
    for line in status_lines(status_values(seen)):
        out.print(line, markup=False)
    if code == RESUMABLE:
        out.print(f"interrupted; conformer-sweep resume {folder} goes on", markup=False)


# ---- before a sweep ----


@app.command()
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


@app.command()
def check(space: Space, as_json: Json = False) -> None:
    """Validate a search space, say what it would cost, and take one tiny step."""
    from core.trial import price
    from sweep.config import load
    from sweep.views import as_json as to_json
    from sweep.views import price_lines, price_values

    config = load(space)
    values = price_values(config, price(config.space.base))
    lines = [to_json(values)] if as_json else price_lines(values)
    out.print("\n".join(lines), markup=False)


@app.command()
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


# ---- looking at a sweep ----


@app.command()
def status(
    folder: Sweep,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option(help="Again every two seconds.")] = False,
) -> None:
    """How far a sweep has come."""
    from sweep.views import as_json as to_json
    from sweep.views import see, status_lines, status_values

    while True:
        values = status_values(see(folder))
        lines = [to_json(values)] if as_json else status_lines(values)
        out.print("\n".join(lines), markup=False)
        if not watch:
            return
        time.sleep(2)


@app.command()
def trials(folder: Sweep, as_json: Json = False) -> None:
    """All trials of a sweep; those on the front stand out."""
    from sweep.views import as_json as to_json
    from sweep.views import see, trial_rows, trials_table

    rows = trial_rows(see(folder))
    if as_json:
        out.print(to_json(rows), markup=False)
    else:
        _print_table(trials_table(rows))


@app.command()
def show(
    folder: Sweep,
    trial: Annotated[int, typer.Argument(help="Its number, from 0.")],
    as_json: Json = False,
) -> None:
    """One trial, whole; of a failed one, why."""
    from sweep.views import as_json as to_json
    from sweep.views import see, trial_lines, trial_rows

    seen = see(folder)
    record = seen.record(trial)
    if as_json:
        out.print(to_json([row for row in trial_rows(seen) if row["trial"] == trial]), markup=False)
    else:
        out.print("\n".join(trial_lines(seen, record)), markup=False)


@app.command()
def pareto(
    folder: Sweep,
    max_wer: Annotated[float | None, typer.Option(help="A fraction: 0.05 is 5 %.")] = None,
    max_gflops: Annotated[float | None, typer.Option(help="An utterance.")] = None,
    max_params: Annotated[float | None, typer.Option(help="Parameters.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="An utterance.")] = None,
    knee: Annotated[bool, typer.Option(help="Only the point where the front bends.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the page there.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Write the picture there.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the picture there.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write all outcomes there.")] = None,
    as_json: Json = False,
) -> None:
    """The front of a sweep: outcomes that no other beats."""
    from sweep import front
    from sweep.figures import front_table
    from sweep.views import as_json as to_json
    from sweep.views import pareto_values, see, write_copies

    seen = see(folder)
    within = front.feasible(
        seen.points,
        max_wer=max_wer,
        max_gflops=max_gflops,
        max_params=max_params,
        max_latency_ms=max_latency_ms,
    )
    points = front.pareto_front(within)
    points = [front.knee(points)] if knee and points else points
    wanted = {"html": html, "svg": svg, "png": png, "csv": csv}
    write_copies(seen, {kind: path for kind, path in wanted.items() if path is not None})
    if as_json:
        out.print(to_json(pareto_values(seen, points)), markup=False)
    elif points:
        _print_table(front_table(points))
    else:
        out.print("no finished trial within these limits yet")


@app.command()
def ui(
    folder: Sweep, port: Annotated[int, typer.Option(help="Of the local server.")] = 5000
) -> None:
    """Serve the sweep's MLflow pages to this machine, and say where the front is."""
    from sweep.config import open_config
    from sweep.tracking import Tracker, ui_command

    folder = folder.resolve()
    config = open_config(folder)
    uri = config.tracking.uri
    is_served = uri.startswith("http")
    tracker = Tracker(folder, config.sweep.name, uri)
    out.print(tracker.link(uri if is_served else f"http://127.0.0.1:{port}"), markup=False)
    if not is_served:
        sys.exit(subprocess.run(ui_command(folder, port), check=False).returncode)  # noqa: S603


# ---- a model at work ----


@app.command()
def transcribe(
    model: Model,
    files: Annotated[list[Path], typer.Argument(help="Audio files.")],
    as_json: Json = False,
) -> None:
    """What a model hears in audio files."""
    from core.deploy import bundle
    from core.deploy.recognise import transcribe as recognise
    from sweep.views import as_json as to_json
    from sweep.views import model_folder

    opened = bundle.load(model_folder(model))
    heard: list[dict[str, str]] = []
    for file, text in recognise(opened, files):
        heard.append({"file": str(file), "text": text})
        if not as_json:
            out.print(f"{file}: {text}", markup=False)
    if as_json:
        out.print(to_json(heard), markup=False)


@app.command()
def evaluate(
    model: Model,
    corpus: Annotated[str, typer.Argument(help="demo, librispeech or a folder.")],
    split: Annotated[Literal["dev", "test"], typer.Option(help="Which part.")] = "test",
    root: Annotated[str, typer.Option(help="Folder of librispeech.")] = "",
    as_json: Json = False,
) -> None:
    """Word error rate of a model on a corpus, with its interval."""
    from core.deploy import bundle
    from core.deploy.recognise import evaluate as judge
    from sweep.views import as_json as to_json
    from sweep.views import corpus_config, corpus_folder, model_folder, wer_line, wer_values

    opened = bundle.load(model_folder(model))
    with corpus_folder() as speech:
        report: Any = judge(opened, corpus_config(corpus, root), split, Path(speech))
    values = wer_values(report)
    out.print(to_json(values) if as_json else wer_line(values), markup=False)
