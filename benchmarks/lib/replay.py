"""Recorded trials, run again in a moment: what a scheduler or a sampler would have made of them."""

import gzip
import heapq
import json
import random
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.config.methods import methods_with_setting
from core.report import Outcome
from sweep.config import toml_writer
from sweep.config.sweep import SweepConfig, parse
from sweep.ledger.records import CurvePoint, TrialRecord
from sweep.pareto import front
from sweep.pareto.front import Point
from sweep.run.tune_scheduler import CONTROL
from sweep.search.early_stopping import Standing

FILE = Path(__file__).parents[1] / "data" / "trials.jsonl.gz"
METHOD = "l0"
"""Method of the recorded trials."""

Judge = Callable[[int, Standing], bool]
"""Whether a trial that stands so at a step shall end there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """What a sweep of recorded trials came to."""

    finished: tuple[TrialRecord, ...]
    """In the order in which they ended."""
    steps_then: tuple[int, ...]
    """What all trials together had spent when each of them ended."""
    steps: int
    """What all trials together spent, those that were stopped too."""

    def points(self, *, most_steps: int | None = None) -> list[Point]:
        """What was found, by the time that so many steps were spent."""
        ends = zip(self.finished, self.steps_then, strict=True)
        return front.points(t for t, then in ends if most_steps is None or then <= most_steps)


def recorded(file: Path = FILE) -> list[TrialRecord]:
    """The recorded trials; they are finished, with their curves."""
    _, *lines = gzip.decompress(file.read_bytes()).decode().splitlines()
    return [_record(json.loads(line)) for line in lines]


def recorded_config(file: Path = FILE) -> SweepConfig:
    """The sweep that recorded them."""
    head, *_ = gzip.decompress(file.read_bytes()).decode().splitlines()
    table = tomllib.loads(json.loads(head)["sweep"])
    pruning = table["trial"]["pruning"]
    own = [key for key in pruning if methods_with_setting(key)]
    pruning[METHOD] = {key: pruning.pop(key) for key in own}
    return parse("\n".join(toml_writer.lines(table)), source=str(file))


def current_name(name: str) -> str:
    """Returns the name of a parameter since methods have tables; the recorded names are older."""
    section, _, key = name.partition(".")
    is_own = section == "pruning" and methods_with_setting(key)
    return f"pruning.{METHOD}.{key}" if is_own else name


def replayed(
    trials: Sequence[TrialRecord], judge: Judge | None, *, workers: int, seed: int
) -> Replay:
    """Run the trials in an order of the seed's, so many side by side; each step takes as long."""
    waiting = list(trials)
    random.Random(seed).shuffle(waiting)  # noqa: S311
    waiting.reverse()
    running = [(0, place, waiting.pop(), 0) for place in range(min(workers, len(waiting)))]
    heapq.heapify(running)
    finished: list[TrialRecord] = []
    steps_then: list[int] = []
    steps, place = 0, workers
    while running:
        clock, _, trial, done = heapq.heappop(running)
        heard = trial.curve[done]
        since = heard.step - (trial.curve[done - 1].step if done else 0)
        clock, steps, place = clock + since, steps + since, place + 1
        is_last = done + 1 == len(trial.curve)
        if is_last:
            finished.append(trial)
            steps_then.append(steps)
        if is_last or (judge is not None and judge(heard.step, standing(trial, heard))):
            if not waiting:
                continue
            trial, done = waiting.pop(), -1
        heapq.heappush(running, (clock, place, trial, done + 1))
    return Replay(finished=tuple(finished), steps_then=tuple(steps_then), steps=steps)


def standing(trial: TrialRecord, heard: CurvePoint) -> Standing:
    return Standing(
        trial=trial.number,
        wer=heard.wer,
        gflops=heard.gflops,
        target=trial.outcomes[0].target_sparsity,
        is_safe=trial.outcomes[0].method == CONTROL,
    )


def _record(values: dict[str, Any]) -> TrialRecord:
    values["params"] = {current_name(name): value for name, value in values["params"].items()}
    curve = tuple(CurvePoint(**heard) for heard in values.pop("curve"))
    outcomes = tuple(Outcome(**o) for o in values.pop("outcomes"))
    return TrialRecord(curve=curve, outcomes=outcomes, **values)
