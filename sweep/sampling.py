"""Which point next: fixed anchors, then a quasi-random start, then a model of what was found.

Anchors and the quasi-random start depend on the seed and the trial's number alone. The model is
Optuna's: it sees finished trials with their first outcome, running ones as pending, and of failed
and stopped ones only that they are over. The control trial lies outside the space; it sees it not.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Literal

import numpy as np
import optuna
from optuna.trial import Trial, TrialState
from scipy.stats import qmc

from core.report import Outcome
from sweep.config import BudgetConfig, Sampler
from sweep.ledger import OBJECTIVES, as_optuna
from sweep.records import TrialRecord
from sweep.space import Choice, SearchSpace

METHOD = "pruning.method"
TARGET = "pruning.target_sparsity"
SEED = "seed"

STARTUP_TRIALS = 10
"""So many trials, anchors included, are placed before a model is asked."""
LEAST_FINISHED = 4
"""With fewer finished ones there is nothing to model."""
GP_MOST_TRIALS = 300
"""Beyond, a Gaussian process takes seconds a suggestion; TPE does not."""
GP_MOST_LEAVES = 12

Params = dict[str, Any]


def anchors(space: SearchSpace) -> list[Params]:
    """The trials every sweep begins with: the control, then lowest, highest and middle target.

    The control is the teacher tuned on by as many steps as a trial spends, so that more training
    is never mistaken for better pruning.
    """
    control: Params = {METHOD: "dense"}
    if TARGET not in space.distributions:
        return [control, space.middle()]
    target = space.distributions[TARGET]
    return [control] + [{**space.middle(), TARGET: target.at(share)} for share in (0.0, 1.0, 0.5)]


def chosen(
    sampler: Sampler, space: SearchSpace, trials: int
) -> Literal["gp", "tpe", "qmc", "random"]:
    """What `auto` stands for in this sweep."""
    if sampler != "auto":
        return sampler
    has_choices = any(isinstance(leaf, Choice) for leaf in space.distributions.values())
    is_large = trials > GP_MOST_TRIALS or len(space.distributions) > GP_MOST_LEAVES
    return "tpe" if has_choices or is_large else "gp"


class Sampling:
    """Proposes trials, and is told how they went."""

    def __init__(self, space: SearchSpace, *, sampler: Sampler, budget: BudgetConfig) -> None:
        self.space = space
        self.kind = chosen(sampler, space, budget.trials)
        self.budget = budget
        self._anchors = anchors(space)
        # A trial's seed is noise to a model; it is drawn beside.
        self._searched = {
            name: as_optuna(leaf) for name, leaf in space.distributions.items() if name != SEED
        }
        self._num_finished = 0
        self._pending: dict[int, Trial] = {}
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # A copy in memory: it may hold what the ledger must not, and costs no query.
        self._study = optuna.create_study(
            directions=["minimize"] * len(OBJECTIVES), sampler=optuna.samplers.RandomSampler(seed=0)
        )

    def propose(self, number: int) -> Params:
        """The parameters of a new trial, which is pending from now on."""
        if number < len(self._anchors):
            params = dict(self._anchors[number])
        elif not self._has_model(number):
            params = self._scattered(number)
        else:
            params = self._modelled(number)
        if self._is_inside(params) and number not in self._pending:
            self._pending[number] = self._place(params)
        return params

    def observe(self, record: TrialRecord) -> None:
        """Learn what became of a trial, or that it is on its way."""
        if not self._is_inside(record.params):
            return
        trial = self._pending.pop(record.number, None) or self._place(record.params)
        if record.state == "finished":
            self._tell(trial, record.outcomes[0])
        elif record.state in ("failed", "stopped"):
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._pending[record.number] = trial

    def warm_up(self) -> None:
        """Import what a model needs, seconds of it, while there is time."""
        if self.kind == "gp":
            import_module("torch")

    def _has_model(self, number: int) -> bool:
        return (
            self.kind in ("gp", "tpe")
            and bool(self._searched)
            and number >= STARTUP_TRIALS
            and self._num_finished >= LEAST_FINISHED
        )

    def _scattered(self, number: int) -> Params:
        """A point that depends on the seed and the number alone."""
        leaves = self.space.distributions
        if self.kind == "random":
            shares = np.random.default_rng([self.budget.seed, number]).random(len(leaves))
        else:
            points = qmc.Sobol(max(len(leaves), 1), rng=self.budget.seed)
            shares = points.fast_forward(number).random(1)[0]
        return {
            name: leaf.at(float(share))
            for (name, leaf), share in zip(leaves.items(), shares, strict=False)
        }

    def _modelled(self, number: int) -> Params:
        self._study.sampler = self._model(self._seed(number))
        trial = self._study.ask(self._searched)
        self._pending[number] = trial
        params = dict(trial.params)
        if SEED in self.space.distributions:
            share = np.random.default_rng([self.budget.seed, number]).random()
            params[SEED] = self.space.distributions[SEED].at(float(share))
        return params

    def _model(self, seed: int) -> optuna.samplers.BaseSampler:
        """A fresh one each time, so that a resumed sweep proposes what an unbroken one would."""
        if self.kind == "gp":
            return optuna.samplers.GPSampler(
                seed=seed, n_startup_trials=0, warn_independent_sampling=False
            )
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=0, multivariate=True)

    def _seed(self, number: int) -> int:
        return int(np.random.SeedSequence([self.budget.seed, number]).generate_state(1)[0])

    def _is_inside(self, params: Mapping[str, Any]) -> bool:
        return bool(self._searched) and all(name in params for name in self._searched)

    def _place(self, params: Mapping[str, Any]) -> Trial:
        """Put a point that somebody else chose into the study, as pending."""
        self._study.sampler = optuna.samplers.RandomSampler(seed=0)
        self._study.enqueue_trial({name: params[name] for name in self._searched})
        return self._study.ask(self._searched)

    def _tell(self, trial: Trial, outcome: Outcome) -> None:
        for limit in ("wer", "gflops", "params", "latency_ms"):
            most = getattr(self.budget, f"max_{limit}")
            if most is not None:
                trial.set_constraint(limit, float(getattr(outcome, limit)) / most - 1)
        self._study.tell(trial, [float(getattr(outcome, name)) for name in OBJECTIVES])
        self._num_finished += 1
