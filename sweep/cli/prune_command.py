"""The command `prune`: smaller models at once, with some minutes of speech or by weights alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from core.files import atomic_write
from core.outside_files import read_json
from sweep.cli.options import Json, Model, out, print_table
from sweep.cli.output.json_text import as_json as as_text
from sweep.cli.output.stages import StageReporter

REMOVE = "--remove"
DEFAULT_SHARE = 0.5


def prune(
    model: Model,
    to: Annotated[Path, typer.Option("--out", help="New folder for the results.")],
    remove: Annotated[
        list[float] | None,
        typer.Option(
            REMOVE,
            help="Shares of --resource to remove, several with --audio (default: 0.5).",
            min=0,
            max=1,
        ),
    ] = None,
    audio: Annotated[
        list[Path] | None,
        typer.Option(help="Audio file or folder of speech like that to recognize; repeatable."),
    ] = None,
    minutes: Annotated[
        float, typer.Option(help="Minutes of --audio to calibrate on, at most.", min=0.1)
    ] = 5.0,
    method: Annotated[
        str, typer.Option(help="Pruning method that needs no speech, where there is no --audio.")
    ] = "magnitude",
    resource: Annotated[
        Literal["flops", "params", "latency"],
        typer.Option(help="Resource that --remove is a share of."),
    ] = "flops",
    seed: Annotated[int, typer.Option(help="Seed of the random generator.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Prune a model at once: with --audio well and to several sizes, without it by weights alone.

    Neither training nor transcripts are needed. A run that was interrupted continues when the
    command is given again.
    """
    shares = tuple(remove or (DEFAULT_SHARE,))
    if not audio and len(shares) > 1:
        raise ValueError(
            f"`{REMOVE}` must name one share without `--audio`, but names {len(shares)} instead"
        )
    if max(shares) == 1:
        raise ValueError(f"`{REMOVE}` must be less than 1, but is 1 instead")
    target = _Target(folder=to, resource=resource, seed=seed)
    if audio:
        values, table = _prune_with_speech(model, shares, audio, target, seconds=60 * minutes)
        if as_json:
            out.print(as_text(values), markup=False)
        else:
            _show(table, to, values)
    else:
        values, line = _prune_by_weights(model, shares[0], method, target)
        out.print(as_text(values) if as_json else line, markup=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Target:
    """What both ways of pruning need to know."""

    folder: Path
    resource: Literal["flops", "params", "latency"]
    seed: int


def spread_shares(words: Sequence[str]) -> list[str]:
    """Return the words of a command with `--remove 0.3 0.5` as `--remove 0.3 --remove 0.5`."""
    spread: list[str] = []
    is_open = False
    for word in words:
        if is_open and _is_number(word):
            # The first number is the option's own.
            spread += [word] if spread[-1] == REMOVE else [REMOVE, word]
            continue
        is_open = word == REMOVE
        spread.append(word)
    return spread


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _prune_with_speech(
    model: str,
    shares: tuple[float, ...],
    audio: Sequence[Path],
    target: _Target,
    *,
    seconds: float,
) -> tuple[dict[str, Any], Table]:
    """Returns the front as plain values and as a table."""
    with StageReporter("starting") as stages:
        from core import bundle
        from core.calibrated_pruning import SENSITIVITY, PruningRequest, prune_with_speech
        from core.data.calibration_speech import read_calibration_speech
        from sweep.cli.output.prune import pruned_table, pruned_values
        from sweep.cli.transcribe_files import find_audio_files
        from sweep.report.pruned_front import write_pruned_front
        from sweep.snapshot import model_path

        stages.announce("reading the model")
        source, folder = model_path(model), target.folder.absolute()
        dense = bundle.load(source)
        stages.announce("reading the speech")
        files = [file for file, _ in find_audio_files(audio)]
        speech = read_calibration_speech(files, dense.model.frontend_spec, seconds=seconds)
        request = PruningRequest(
            model=source, remove=shares, resource=target.resource, seed=target.seed
        )
        rows = list(prune_with_speech(request, dense, speech, folder, announce=stages.announce))
        stages.announce("drawing the front")
        sensitivity = read_json(folder / SENSITIVITY)
        values = {**pruned_values(rows, speech), "sensitivity": sensitivity}
        atomic_write(folder / "front.json", as_text(values) + "\n")
        write_pruned_front(values, folder, title=f"{source.parent.name}/{source.name}, pruned")
        return values, pruned_table(rows, speech)


def _prune_by_weights(
    model: str, share: float, method: str, target: _Target
) -> tuple[dict[str, Any], str]:
    """Returns what was measured, as plain values and as a line."""
    with StageReporter("starting") as stages:
        from core.data_free import config_of, prune_bundle
        from sweep.snapshot import model_path
        from sweep.wer_labels import pruning_line

        pruning = {"method": method, "resource": target.resource, "target_sparsity": share}
        config = config_of(model_path(model), pruning, seed=target.seed)
        values = prune_bundle(config, target.folder.absolute(), announce=stages.announce)
    return values, pruning_line(values)


def _show(table: Table, folder: Path, values: Mapping[str, Any]) -> None:
    print_table(table)
    smallest = f"{folder}/{values['models'][-1]['folder']}"
    out.print(f"page        {folder}/front.html", markup=False)
    out.print(f"transcribe  conformer-sweep transcribe {smallest} FILE", markup=False)
    out.print(f"export      conformer-sweep export {smallest} --to onnx --out FOLDER", markup=False)
