"""The command `prune`: smaller models at once, with some minutes of speech or by weights alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from core.files import atomic_write
from core.outside_files import read_json
from sweep.cli.calibration_options import AnyRecognizer, Audio, Minutes, Root
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
        help="Shares of --resource to remove, several with --audio (default: 0.5).",
        min=0,
        max=1,
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(
        help="Units to keep of a part, such as blocks.3.ff1=512 or 'blocks.*.attention=4';"
        " repeatable, with --audio.",
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
TestSplit = Annotated[Literal["dev", "test"], typer.Option(help="Split of --test to measure on.")]
Method = Annotated[
    str, typer.Option(help="Pruning method that needs no speech, where there is no --audio.")
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
    minutes: Minutes = 5.0,
    test: TestCorpus = None,
    split: TestSplit = "test",
    root: Root = "",
    method: Method = "magnitude",
    resource: Resource = "flops",
    seed: Annotated[int, typer.Option(help="Seed of the random generator.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Prune a model at once: with --audio well and to several sizes, without it by weights alone.

    Neither training nor transcripts are needed. A run that was interrupted continues when the
    command is given again.
    """
    counts = _kept_counts(keep or [])
    shares = tuple(remove or (() if counts else (DEFAULT_SHARE,)))
    _check_options(shares, has_audio=bool(audio), needs_audio={"--keep": keep, "--test": test})
    target = _Target(folder=to, resource=resource, seed=seed, remove=shares, keep=counts)
    if audio:
        speech = _Speech(audio=audio, seconds=60 * minutes, root=root, test=test, split=split)
        values, table = _prune_with_speech(model, target, speech)
        if as_json:
            out.print(as_text(values), markup=False)
        else:
            _show(table, to, values)
    else:
        values, line = _prune_by_weights(model, method, target)
        out.print(as_text(values) if as_json else line, markup=False)


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
    root: str
    test: str | None
    split: Literal["dev", "test"]

    @property
    def test_corpus(self) -> str | None:
        """The corpus to measure on: a named corpus of `audio` has splits that lie apart."""
        from sweep.cli.calibration_options import CORPORA, is_corpus

        named = [name for name in self.audio if name in CORPORA and is_corpus(name)]
        return self.test or next(iter(named), None)


def _check_options(
    shares: Sequence[float], *, has_audio: bool, needs_audio: Mapping[str, object]
) -> None:
    """Refuse options that do not go together.

    Raises:
        ValueError: naming the option.
    """
    for name, value in needs_audio.items():
        if value and not has_audio:
            raise ValueError(f"`{name}` must go with `--audio`, but is given without it instead")
    if not has_audio and len(shares) > 1:
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
    counts = {}
    for word in words:
        part, _, count = word.rpartition("=")
        if not part or not count.isdecimal() or len(count) > len("1000000"):
            raise ValueError(
                f"`--keep` must be a part and a number, such as blocks.3.ff1=512, but is `{word}`"
                " instead"
            )
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
        from core.one_shot.with_speech import SENSITIVITY, PruningRequest, prune_with_speech
        from sweep.cli.calibration_options import open_unpruned, read_speech
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
        values = {**pruned_values(rows, speech, test), "sensitivity": sensitivity}
        atomic_write(folder / "front.json", as_text(values) + "\n")
        write_pruned_front(values, folder, title=f"{source.parent.name}/{source.name}, pruned")
        return values, pruned_table(rows, speech, test)


def _test_speech(named: _Speech, dense: "Bundle", folder: Path) -> "TestSpeech | None":
    """Returns the split with transcripts; None if there is none."""
    from core.one_shot.comparison import TestSpeech
    from sweep.cli.corpus_option import corpus_config

    corpus = named.test_corpus
    if corpus is None:
        return None
    return TestSpeech.read(dense, corpus_config(corpus, named.root), named.split, folder)


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
    out.print(f"transcribe  conformer-sweep transcribe {smallest} FILE", markup=False)
    out.print(f"export      conformer-sweep export {smallest} --to onnx --out FOLDER", markup=False)
    out.print(f'tune        [trial.teacher] bundle = "{smallest}"', markup=False)
