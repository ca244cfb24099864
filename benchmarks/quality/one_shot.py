"""One-shot pruning with each of its ingredients taken out or changed, on one teacher.

No step is trained. Speech to calibrate on comes from training speech, as audio files; WER is over
dev and test together, with a bootstrap interval, and against the whole recipe pair by pair. The
teacher and its features are those that `benchmarks.quality.methods` left in --dir (a `teacher-N`
there, with --teachers).
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib.cells import Errors, against, teacher_of, wer_of
from benchmarks.lib.measurement import arguments, emit
from core import bundle
from core.bundle import Bundle
from core.config.pruning import AxisKind, Repair
from core.conformer.model import Conformer
from core.data.calibration_speech import SpeechBatch, read_calibration_speech
from core.data.prepare import Speech, open_speech
from core.evaluation.batch_decoding import decode_store
from core.evaluation.wer import word_errors
from core.methods.magnitude import magnitudes
from core.methods.obs import Settings, all_tables
from core.pruning import sequential
from core.pruning.reconstruction import extract_and_reconstruct
from core.pruning.selection import Budget, choose
from core.pruning.sensitivity import SensitivityTable, table_scores
from core.pruning.space import Choice, Space
from sweep.cli.transcribe_files import find_audio_files

AXES: tuple[AxisKind, ...] = ("frontend", "width", "head", "inner", "channel", "module")
SECONDS = 10.0
WHOLE = "the whole recipe"
MINUTES = (1.0, 2.0, 5.0, 10.0, 30.0)
LEVELS = (4, 8, 16)
ROUNDS = (2, 3, 4)

Tables = Sequence[SensitivityTable]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A way to prune; what it does not say is as in the whole recipe."""

    name: str
    settings: Settings = Settings()  # noqa: RUF009 - it is frozen
    change: Callable[[Conformer, Tables], Tables] = lambda _, tables: tables
    repair: Repair = "sequential"
    refits_readers: bool = True
    rounds: int = 1
    minutes: float = 5.0
    is_foreign: bool = False
    """Calibrated on other speech than the judgement's."""


def without_order(model: Conformer, tables: Tables) -> Tables:
    """The same prices, but inside an axis units go by magnitude."""
    weights = magnitudes(model, [table.axis for table in tables])
    return [replace(table, order=weights[table.axis.name].argsort(stable=True)) for table in tables]


def without_prices(model: Conformer, tables: Tables) -> Tables:
    """The same orders, but an axis is worth as much as any: errors relative to its own largest."""
    del model
    return [replace(table, increase=table.increase / table.increase[-1]) for table in tables]


def without_width(model: Conformer, tables: Tables) -> Tables:
    """The width stays whole."""
    del model
    return [table for table in tables if table.axis.kind != "width"]


def recipes(minutes: Sequence[float], *, has_foreign: bool) -> Iterator[Recipe]:
    yield Recipe(name=WHOLE)
    yield Recipe(name="order by magnitude", change=without_order)
    yield Recipe(name="local errors between axes", change=without_prices)
    yield Recipe(name="width whole", change=without_width)
    yield Recipe(name="readers not refitted", refits_readers=False)
    yield Recipe(name="plain least squares", repair="ls")
    yield Recipe(name="scaled columns", repair="mask")
    yield Recipe(name="no repair", repair="none")
    for levels in LEVELS:
        settings = Settings(tables="measured", levels=levels)
        yield Recipe(name=f"measured at {levels} levels", settings=settings)
    for rounds in ROUNDS:
        yield Recipe(name=f"{rounds} rounds", rounds=rounds)
    for length in minutes:
        yield Recipe(name=f"{length:g} minutes of speech", minutes=length)
    if has_foreign:
        yield Recipe(name="5 minutes of other speech", is_foreign=True)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="of a teacher and its features")
    parser.add_argument("--audio", type=Path, nargs="+", required=True, help="training speech")
    parser.add_argument("--other", type=Path, nargs="+", default=[], help="speech of another kind")
    parser.add_argument("--removed", type=float, nargs="+", default=[0.5, 0.7, 0.8, 0.9])
    parser.add_argument("--minutes", type=float, nargs="+", default=MINUTES)
    parser.add_argument("--only", nargs="+", default=[], help="recipes, beside the whole one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="one_shot", help="which file under results/ is written")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    root = args.dir.resolve()
    dense, judged = bundle.load(teacher_of(root)), open_speech(root / "features")
    errors = {("teacher", 0.0): errors_of(dense.model, dense, judged)}
    for recipe in recipes(args.minutes, has_foreign=bool(args.other)):
        if args.only and recipe.name not in (WHOLE, *args.only):
            continue
        audio = args.other if recipe.is_foreign else args.audio
        found = read_calibration_speech(
            [file for file, _ in find_audio_files(audio)],
            dense.model.frontend_spec,
            seconds=60 * recipe.minutes,
        ).calibration
        for target, model in pruned(recipe, dense, found, args):
            errors[recipe.name, target] = errors_of(model, dense, judged)
            line = {"name": recipe.name, "target": target, **wer_of(errors[recipe.name, target])}
            print(json.dumps(line), file=sys.stderr, flush=True)
    emit(args.name, rows_of(errors), {"seed": args.seed, "removed": args.removed}, args)


def rows_of(errors: Mapping[tuple[str, float], Errors]) -> list[dict[str, Any]]:
    teacher = errors["teacher", 0.0]
    return [
        {
            "name": name,
            "target": f"{100 * target:g} % flops" if target else "",
            **wer_of(own),
            **against("teacher", own, teacher),
            **against("whole", own, errors.get((WHOLE, target), own)),
        }
        for (name, target), own in errors.items()
    ]


def pruned(
    recipe: Recipe, dense: Bundle, speech: list[SpeechBatch], args: argparse.Namespace
) -> Iterator[tuple[float, Conformer]]:
    """Yield each size with its target; one set of tables serves all, unless there are rounds."""
    model = dense.model.eval()
    space = Space.of(model, AXES, SECONDS)
    tables = priced(recipe, model, space, speech, args.seed)
    with readers_refitted(is_on=recipe.refits_readers):
        for target in args.removed:
            choice = chosen(space, tables, target / recipe.rounds)
            for number in range(2, recipe.rounds + 1):
                small = repaired(recipe, model, choice, speech)
                inner = Space.of(small, AXES, SECONDS, unpruned=model)
                again = priced(recipe, small, inner, speech, args.seed)
                more = chosen(inner, again, target * number / recipe.rounds)
                choice = composed(choice, more)
            yield target, repaired(recipe, model, choice, speech)


def priced(
    recipe: Recipe, model: Conformer, space: Space, speech: list[SpeechBatch], seed: int
) -> Tables:
    return recipe.change(model, list(all_tables(model, space, speech, recipe.settings, seed=seed)))


def chosen(space: Space, tables: Tables, target: float) -> Choice:
    scores = table_scores(space, tables, "flops")
    return choose(space, scores, Budget(keep=1 - target, resource="flops"), is_filled=True)


def repaired(
    recipe: Recipe, model: Conformer, choice: Choice, speech: list[SpeechBatch]
) -> Conformer:
    return extract_and_reconstruct(model, {}, choice, how=recipe.repair, speech=speech).eval()


def composed(first: Choice, second: Choice) -> Choice:
    """The choice of a choice: of units 0, 2 and 5 that stay, the second may keep the last two."""
    both = {name: units.clone() for name, units in first.items()}
    for name, units in second.items():
        stays = first[name].nonzero().flatten()
        both[name] = torch.zeros_like(first[name])
        both[name][stays[units]] = True
    return both


@contextmanager
def readers_refitted(*, is_on: bool) -> Iterator[None]:
    """Without it the sequential repair refits output projections alone."""
    refit = sequential._reconstruct_reader  # noqa: SLF001 - an ingredient that is taken out
    try:
        if not is_on:
            sequential._reconstruct_reader = lambda *_: None  # noqa: SLF001
        yield
    finally:
        sequential._reconstruct_reader = refit  # noqa: SLF001


def errors_of(model: Conformer, dense: Bundle, judged: Speech) -> Errors:
    """Errors and words, an utterance, of dev and test together."""
    texts: list[str] = []
    for store in (judged.dev, judged.test):
        texts += decode_store(model, store, dense.tokenizer, torch.device("cpu"))
    counted = word_errors([*judged.dev.texts, *judged.test.texts], texts)
    return list(map(float, counted.errors)), list(map(float, counted.words))


if __name__ == "__main__":
    main()
