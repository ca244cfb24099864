"""The command `prune`: smaller models at once, with some minutes of speech or by weights alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from core.files import atomic_write
from core.outside_files import read_json
from sweep.cli.calibration_options import MINUTES, AnyRecognizer, Audio, Minutes, Root, Tables
from sweep.cli.options import Json, out, print_table
from sweep.cli.output.json_text import as_json as as_text
from sweep.cli.output.stages import StageReporter

if TYPE_CHECKING:  # torch takes seconds that `--help` should not
    from core.bundle import Bundle
    from core.one_shot.comparison import TestSpeech

REMOVE = "--remove"
DEFAULT_SHARE = 0.5


Remove = Annotated[
    list[float] | None,
    typer.Option(
        REMOVE,
        help="Share of --resource to remove, less than 1 (default: 0.5); several with --audio.",
        min=0,
        max=1,
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(
        help="Number of units that a part keeps, such as blocks.3.ff1=512, or"
        " 'blocks.*.attention=4' for all blocks; repeatable, with --audio.",
        metavar="PART=UNITS",
    ),
]
TestCorpus = Annotated[
    str | None,
    typer.Option(
        help="Corpus with transcripts to measure the word error rate on: demo, librispeech, a"
        " folder or a manifest.",
        metavar="CORPUS",
    ),
]
TestSplit = Annotated[
    Literal["dev", "test"] | None,
    typer.Option(help="Split of --test to measure on (default: test)."),
]
Case = Annotated[
    Literal["as_written", "lower", "upper"] | None,
    typer.Option(help="Letter case of the transcripts of --test (default: as_written)."),
]
Method = Annotated[
    str | None,
    typer.Option(help="Pruning method, without --audio (default: magnitude)."),
]
Resource = Annotated[
    Literal["flops", "params", "latency"],
    typer.Option(help="Resource that --remove is a share of."),
]


def prune(
    model: AnyRecognizer,
    to: Annotated[Path, typer.Option("--out", help="New folder for the results.")],
    remove: Remove = None,
    keep: Keep = None,
    audio: Audio = None,
    minutes: Minutes = None,
    tables: Tables = None,
    test: TestCorpus = None,
    split: TestSplit = None,
    case: Case = None,
    root: Root = "",
    method: Method = None,
    resource: Resource = "flops",
    seed: Annotated[int, typer.Option(help="Seed of the random generator.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Prune a model without training: with --audio well and to several sizes.

    Without --audio only the weights are looked at. Transcripts are never needed. A run with --audio
    that was interrupted continues when the command is given again.
    """
    counts = _kept_counts(keep or [])
    shares = tuple(remove or (() if counts else (DEFAULT_SHARE,)))
    with_audio = {"--keep": keep, "--minutes": minutes, "--tables": tables, "--test": test}
    with_test = {"--split": split, "--case": case}
    _check_together("--audio", audio, {**with_audio, "--root": root})
    _check_together("--test", test, with_test)
    _check_shares(shares, is_one=not audio)
    target = _Target(folder=to, resource=resource, seed=seed, remove=shares, keep=counts)
    if not audio:
        values, line = _prune_by_weights(model, method or "magnitude", target)
        out.print(as_text(values) if as_json else line, markup=False)
        return
    if method is not None:
        raise ValueError(f"`--method` must be left out with `--audio`, but is `{method}` instead")
    speech = _Speech(
        audio=audio,
        seconds=60 * (minutes or MINUTES),
        tables=tables or "fisher",
        root=root,
        test=test,
        split=split or "test",
        case=case or "as_written",
    )
    values, table = _prune_with_speech(model, target, speech)
    if as_json:
        out.print(as_text(values), markup=False)
    else:
        _show(table, to, values)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Target:
    """What both ways of pruning need to know."""

    folder: Path
    resource: Literal["flops", "params", "latency"]
    seed: int
    remove: tuple[float, ...]
    keep: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Speech:
    """Which speech is looked at, and which is recognized for a word error rate."""

    audio: Sequence[str]
    seconds: float
    tables: Literal["fisher", "measured"]
    root: str
    test: str | None
    split: Literal["dev", "test"]
    case: Literal["as_written", "lower", "upper"]


def _check_together(option: str, value: object, others: Mapping[str, object]) -> None:
    """Refuse options that have no effect without another.

    Raises:
        ValueError: naming the first of them.
    """
    for name, given in others.items():
        if given and not value:
            raise ValueError(f"`{name}` must go with `{option}`, but is given without it instead")


def _check_shares(shares: Sequence[float], *, is_one: bool) -> None:
    """Refuse shares that cannot be removed.

    Raises:
        ValueError: naming the rule.
    """
    if is_one and len(shares) > 1:
        raise ValueError(
            f"`{REMOVE}` must name one share without `--audio`, but names {len(shares)} instead"
        )
    if shares and max(shares) == 1:
        raise ValueError(f"`{REMOVE}` must be less than 1, but is 1 instead")


def _kept_counts(words: Sequence[str]) -> dict[str, int]:
    """Return the numbers of units by part, of words such as `blocks.3.ff1=512`.

    Raises:
        ValueError: naming a word of another form.
    """
    counts: dict[str, int] = {}
    for word in words:
        part, _, count = word.rpartition("=")
        if not part or not count.isdecimal() or len(count) > len("1000000"):
            raise ValueError(
                f"`--keep` must be a part and a number, such as blocks.3.ff1=512, but is `{word}`"
                " instead"
            )
        counts.pop(part, None)  # the last one counts, and stands last
        counts[part] = int(count)
    return counts


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


def _prune_with_speech(model: str, target: _Target, named: _Speech) -> tuple[dict[str, Any], Table]:
    """Returns the front as plain values and as a table."""
    with StageReporter("starting") as stages:
        from core.methods.obs import Settings
        from core.one_shot.with_speech import SENSITIVITY, PruningRequest, prune_with_speech
        from sweep.cli.calibration_options import open_unpruned, read_speech, title_of
        from sweep.cli.corpus_option import corpus_folder
        from sweep.cli.output.prune import pruned_table, pruned_values
        from sweep.report.pruned_front import write_pruned_front

        folder = target.folder.absolute()
        source, dense = open_unpruned(model, folder, announce=stages.announce)
        stages.announce("reading the speech")
        with corpus_folder() as spoken:
            speech = read_speech(
                named.audio,
                dense.model.frontend_spec,
                seconds=named.seconds,
                root=named.root,
                spoken=Path(spoken),
            )
            request = PruningRequest(
                model=source,
                remove=target.remove,
                keep=target.keep,
                resource=target.resource,
                settings=Settings(tables=named.tables),
                seed=target.seed,
            )
            test = _test_speech(named, dense, Path(spoken))
            rows = list(
                prune_with_speech(
                    request, dense, speech, folder, test=test, announce=stages.announce
                )
            )
        stages.announce("drawing the front")
        sensitivity = read_json(folder / SENSITIVITY)
        rows[1:] = sorted(rows[1:], key=lambda row: -row.gflops)
        values = {**pruned_values(rows, speech, test), "sensitivity": sensitivity}
        atomic_write(folder / "front.json", as_text(values) + "\n")
        write_pruned_front(values, folder, title=f"{title_of(model, source)}, pruned")
        return values, pruned_table(rows, speech, test)


def _test_speech(named: _Speech, dense: "Bundle", folder: Path) -> "TestSpeech | None":
    """Returns the split with transcripts; None if there is none."""
    from core.one_shot.comparison import TestSpeech
    from sweep.cli.corpus_option import corpus_config

    if named.test is None:
        return None
    config = corpus_config(named.test, named.root, named.case)
    return TestSpeech.read(dense, config, named.split, folder)


def _prune_by_weights(model: str, method: str, target: _Target) -> tuple[dict[str, Any], str]:
    """Returns what was measured, as plain values and as a line."""
    with StageReporter("starting") as stages:
        from core.one_shot.by_weights import config_of, prune_bundle
        from sweep.snapshot import model_path
        from sweep.wer_labels import pruning_line

        (share,) = target.remove
        pruning = {"method": method, "resource": target.resource, "target_sparsity": share}
        config = config_of(model_path(model), pruning, seed=target.seed)
        values = prune_bundle(config, target.folder.absolute(), announce=stages.announce)
    return values, pruning_line(values)


def _show(table: Table, folder: Path, values: Mapping[str, Any]) -> None:
    print_table(table)
    smallest = f"{folder}/{values['models'][-1]['folder']}"
    out.print(f"page        {folder}/front.html", markup=False)
    if read_json(Path(smallest) / "shape.json").get("has_ctc", True):  # others are not exported yet
        out.print(f"transcribe  conformer-sweep transcribe {smallest} FILE", markup=False)
        onnx = f"export {smallest} --to onnx --out FOLDER"
        out.print(f"export      conformer-sweep {onnx}", markup=False)
    out.print(f'tune        [trial.teacher] bundle = "{smallest}"', markup=False)
