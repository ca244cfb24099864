"""Proposal of the next point: anchors, then quasi-random points, then a model of the outcomes.

Anchors and the quasi-random start depend on the seed and the trial's number alone. The model is
Optuna's: it sees the outcomes of finished trials, running ones as pending, and of failed and
stopped ones only that they are over. A further outcome is told as a trial of its own that asked for
that target. The control trial lies outside the space; the model does not see it.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from core.config.methods import owner_of
from core.report import Outcome
from sweep.config.distributions import Choice
from sweep.config.space import METHOD, SearchSpace
from sweep.config.sweep import BudgetConfig, Sampler, SearchConfig
from sweep.ledger.ledger import as_optuna
from sweep.ledger.records import TrialRecord

TARGET = "pruning.target_sparsity"
SEED = "seed"

STARTUP_TRIALS = 10
"""So many trials, anchors included, are placed before a model is asked."""
LEAST_FINISHED = 4
"""With fewer finished ones there is nothing to model."""
GP_MOST_TRIALS = 300
"""Beyond, a Gaussian process takes seconds a suggestion; TPE does not."""
GP_MOST_LEAVES = 12
POPULATION = 20
"""Of nsga2: sweeps have tens of trials, not thousands."""

Kind = Literal["gp", "tpe", "nsga2", "qmc", "random", "grid"]
Params = dict[str, Any]


def anchors(space: SearchSpace, kind: Sampler = "auto") -> list[Params]:
    """The trials every sweep begins with: the control, then lowest, highest and middle target.

    The control is the teacher tuned on by as many steps as a trial spends, so that more training
    is never mistaken for better pruning.
    """
    control: Params = {METHOD: "dense"}
    if kind == "grid":
        return [control]  # a grid has its ends and its middle anyway
    if TARGET not in space.distributions:
        return [control, space.middle()]
    target = space.distributions[TARGET]
    return [control] + [{**space.middle(), TARGET: target.at(share)} for share in (0.0, 1.0, 0.5)]


def choose_kind(sampler: Sampler, space: SearchSpace, number: int) -> Kind:
    """Returns the sampler that `auto` stands for at the trial of this number."""
    if sampler != "auto":
        return sampler
    has_choices = any(isinstance(leaf, Choice) for leaf in space.distributions.values())
    is_large = number > GP_MOST_TRIALS or len(space.distributions) > GP_MOST_LEAVES
    return "tpe" if has_choices or is_large else "gp"


def suggest(trial: Trial, name: str, distribution: BaseDistribution) -> None:
    """Asks a trial for one more parameter."""
    if isinstance(distribution, CategoricalDistribution):
        trial.suggest_categorical(name, distribution.choices)
    elif isinstance(distribution, IntDistribution):
        trial.suggest_int(name, distribution.low, distribution.high)
    elif isinstance(distribution, FloatDistribution):
        trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)


class Sampling:
    """Proposes trials, and is told how they went."""

    def __init__(self, space: SearchSpace, *, search: SearchConfig, budget: BudgetConfig) -> None:
        self.space = space
        self.search = search
        self.budget = budget
        self._anchors = anchors(space, search.sampler)
        # A trial's seed is noise to a model, so it is drawn separately.
        self._searched = {
            name: as_optuna(leaf) for name, leaf in space.distributions.items() if name != SEED
        }
        self._num_before = 0
        self._finished: dict[tuple[int, int], FrozenTrial] = {}
        self._pending: dict[int, Trial] = {}
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # A copy in memory: it may hold what the ledger must not, and costs no query.
        self._study = self._empty_study(optuna.samplers.RandomSampler(seed=0))

    def kind(self, number: int) -> Kind:
        return choose_kind(self.search.sampler, self.space, number)

    def propose(self, number: int) -> Params:
        """The parameters of a new trial, which is pending from now on."""
        if number < len(self._anchors):
            params = dict(self._anchors[number])
        elif self.kind(number) == "grid":
            params = self._grid_point(number)
        elif not self._has_model(number):
            params = self._scatter(number)
        elif self.kind(number) == "nsga2":
            params = self._evolve(number)
        else:
            params = self._propose_by_model(number)
        # A model sees what runs as pending, or trials that start together would be given nearly the
        # same point. A point that the study itself has proposed is pending already.
        if self._is_inside(params) and self._holds(params) and number not in self._pending:
            self._pending[number] = self._enqueue(params)
        return params

    def observe(self, record: TrialRecord) -> None:
        """Learn what became of a trial, or that it is on its way.

        Numbers below 0 are trials of other sweeps, with whose outcomes this one begins.
        """
        if not self._is_inside(record.params):
            return
        self._num_before += record.number < 0
        pending = self._pending.pop(record.number, None)
        if record.state == "finished":
            self._add_further(record)
        if pending is None and not self._holds(record.params):
            return  # the control of a sweep over other methods, or a trial of wider ranges
        # Finished in an earlier segment or another sweep, so that no trial here waits for its
        # values.
        if record.state == "finished" and pending is None:
            self._add(record, 0, record.params)
            return
        trial = pending or self._enqueue(record.params)
        if record.state == "finished":
            self._tell(record, trial)
        elif record.state in ("failed", "stopped"):
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._pending[record.number] = trial

    def warm_up(self) -> None:
        """Import what a model needs, seconds of it, while there is time."""
        if self.kind(0) == "gp":
            import_module("torch")

    def _has_model(self, number: int) -> bool:
        return (
            self.kind(number) in ("gp", "tpe", "nsga2")
            and bool(self._searched)
            and number + self._num_before >= STARTUP_TRIALS
            and len(self._finished) >= LEAST_FINISHED
        )

    def _scatter(self, number: int) -> Params:
        """A point that depends on the seed and the number alone."""
        leaves = self.space.distributions
        if self.kind(number) == "random":
            shares = self._generator(number).random(len(leaves))
        else:
            from scipy.stats import qmc  # noqa: PLC0415  # a second, of this sampler alone

            # The sequence is always made from its start and wound forward, so that point 7 is the
            # same whether points 0 to 6 were drawn here or before a kill.
            points = qmc.Sobol(max(len(leaves), 1), rng=self.budget.seed)
            shares = points.fast_forward(number).random(1)[0]
        params = {
            name: leaf.at(float(share))
            for (name, leaf), share in zip(leaves.items(), shares, strict=False)
        }
        active = self.space.active_leaves(params)  # a method's own leaves are of its trials alone
        return {name: value for name, value in params.items() if name in active}

    def _grid_point(self, number: int) -> Params:
        """A point of the grid, in an order of the seed's: a part of the grid covers the whole."""
        points = self.space.grid(self.search.grid_levels, without=(SEED,))
        # In the order of `grid` the first half would hold one half of the first leaf's levels
        # alone.
        order = np.random.default_rng(self.budget.seed).permutation(len(points))
        return self._with_seed(points[order[number - len(self._anchors)]], number)

    def _propose_by_model(self, number: int) -> Params:
        if self.space.is_conditional:
            return self._with_seed(self._propose_by_groups(number), number)
        self._study.sampler = self._model(number)
        trial = self._study.ask(self._searched)
        self._pending[number] = trial
        return self._with_seed(trial.params, number)

    def _propose_by_groups(self, number: int) -> Params:
        """Returns a point of a conditional space, group by group, each by a model of its own.

        The shared leaves come first, because they choose the method; then the method's own, by a
        model of that method's trials. Optuna's `group=True` does nearly the same, but draws its
        groups in the order of a set of texts, which another process could not repeat.
        """
        params: Params = {}
        groups = [None, *self.space.methods]
        # A method's own leaves may choose another one, by whose scores its gates start.
        # With methods l0 and acip: first `pruning.method` and the targets, group 0. If those say
        # l0, `pruning.l0.lambda_lr` becomes active and follows in group 1; nothing of acip is
        # drawn.
        while missing := [name for name in self._active(params) if name not in params]:
            owner = min(map(owner_of, missing), key=groups.index)
            names = [name for name in missing if owner_of(name) == owner]
            params |= self._propose_group(number, names, part=groups.index(owner))
        return params

    def _propose_group(self, number: int, names: list[str], *, part: int) -> Params:
        """Returns values of some leaves by a model of the finished trials that have them.

        Args:
            number: of the trial.
            names: leaves that are always searched together.
            part: number of the group, for a seed of its own.
        """
        trials = [
            create_trial(
                params={name: trial.params[name] for name in names},
                distributions={name: trial.distributions[name] for name in names},
                values=trial.values,
                system_attrs=trial.system_attrs,  # which hold the constraints
            )
            # By number, not in the order of their ends, which another run would not repeat.
            for _, trial in sorted(self._finished.items())
            if all(name in trial.params for name in names)
        ]
        # A method that was hardly tried yet has nothing to model, however many trials others have.
        if len(trials) < LEAST_FINISHED:
            shares = np.random.default_rng([self.budget.seed, number, part]).random(len(names))
            leaves = [self.space.distributions[name] for name in names]
            return {n: d.at(float(s)) for n, d, s in zip(names, leaves, shares, strict=True)}
        study = self._empty_study(self._model(number, part))
        study.add_trials(trials)
        return study.ask({name: self._searched[name] for name in names}).params

    def _model(self, number: int, part: int = 0) -> optuna.samplers.BaseSampler:
        """A fresh one each time, so that a resumed sweep proposes what an unbroken one would."""
        seed = self._model_seed(number, part)
        if self.kind(number) == "gp":
            return optuna.samplers.GPSampler(
                seed=seed, n_startup_trials=0, warn_independent_sampling=False
            )
        # No random start of Optuna's own: the scattered trials were that.
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=0, multivariate=True)

    def _evolve(self, number: int) -> Params:
        """A child of the finished trials, whose generations are counted by their numbers.

        Optuna counts them as they come, which a resumed sweep could not repeat.
        """
        sampler = optuna.samplers.NSGAIISampler(
            seed=self._model_seed(number), population_size=POPULATION
        )
        study = self._empty_study(sampler)
        generation = sampler._get_generation_key()  # noqa: SLF001  # the only way to say it
        for index, (_, trial) in enumerate(sorted(self._finished.items())):
            trial.system_attrs = {**trial.system_attrs, generation: index // POPULATION}
            study.add_trial(trial)
        is_split = self.space.is_conditional
        # The shared leaves first, as they choose the method: a child has no other method's leaves.
        child = study.ask(
            {n: d for n, d in self._searched.items() if not (is_split and owner_of(n))}
        )
        while missing := self._active(child.params).keys() - child.params.keys():
            for name in sorted(missing):
                suggest(child, name, self._searched[name])
        return self._with_seed(child.params, number)

    def _empty_study(self, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
        directions = [StudyDirection.MINIMIZE] * len(self.budget.objectives)
        return optuna.create_study(directions=directions, sampler=sampler)

    def _with_seed(self, params: Params, number: int) -> Params:
        """The parameters, and the trial's own seed if that is drawn."""
        if SEED not in self.space.distributions:
            return dict(params)
        # From seed and number alone, so the seeds of trials do not depend on the sampler.
        share = float(self._generator(number).random())
        return {**params, SEED: self.space.distributions[SEED].at(share)}

    def _generator(self, number: int) -> np.random.Generator:
        return np.random.default_rng([self.budget.seed, number])

    def _model_seed(self, number: int, part: int = 0) -> int:
        # A seed for each number and group: with one for all, samplers that are made anew for each
        # trial would draw the same candidates every time.
        entropy = [self.budget.seed, number, *([part] if part else [])]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def _is_inside(self, params: Mapping[str, Any]) -> bool:
        return bool(self._searched) and all(name in params for name in self._active(params))

    def _active(self, params: Mapping[str, Any]) -> dict[str, BaseDistribution]:
        """Returns the searched leaves that a trial of these parameters has."""
        active = self.space.active_leaves(params)
        return {name: leaf for name, leaf in self._searched.items() if name in active}

    def _enqueue(self, params: Mapping[str, Any]) -> Trial:
        """Put a point that somebody else chose into the study, as pending."""
        self._study.sampler = optuna.samplers.RandomSampler(seed=0)
        searched = self._active(params)
        self._study.enqueue_trial({name: params[name] for name in searched})
        return self._study.ask(searched)

    def _holds(self, params: Mapping[str, Any]) -> bool:
        leaves = self.space.distributions
        return all(leaves[name].holds(params[name]) for name in self._active(params))

    def _add_further(self, record: TrialRecord) -> None:
        """The outcomes after the first, where the target that each was for is searched."""
        for number, outcome in enumerate(record.outcomes):
            # A family of targets 0.3, 0.5 and 0.7 from one trial counts as three trials that asked
            # for one each. Outcome 0 is the trial itself, which `observe` adds.
            params = {**record.params, TARGET: outcome.target_sparsity}
            if number and TARGET in self._searched and self._holds(params):
                self._add(record, number, params)

    def _add(self, record: TrialRecord, number: int, params: Mapping[str, Any]) -> None:
        """An outcome that was never pending here, at a fifth of the time that asking would take."""
        outcome, searched = record.outcomes[number], self._active(params)
        trial = create_trial(
            params={name: params[name] for name in searched},
            distributions=searched,
            values=self._values(outcome),
            constraints=self._constraints(outcome),
        )
        self._study.add_trial(trial)
        self._finished[record.number, number] = trial

    def _tell(self, record: TrialRecord, trial: Trial) -> None:
        outcome = record.outcomes[0]
        for name, value in self._constraints(outcome).items():
            trial.set_constraint(name, value)
        self._finished[record.number, 0] = self._study.tell(trial, self._values(outcome))

    def _values(self, outcome: Outcome) -> list[float]:
        return [float(getattr(outcome, name)) for name in self.budget.objectives]

    def _constraints(self, outcome: Outcome) -> dict[str, float]:
        """Returns the excess over each limit, as a share of it; at most 0 where it holds."""
        # max_wer = 0.10: a WER of 0.12 gives 0.2, of 0.09 gives -0.1. As shares, limits in GFLOPs
        # and in milliseconds weigh the same.
        violations = {}
        for limit in ("wer", "gflops", "params", "latency_ms"):
            most = getattr(self.budget, f"max_{limit}")
            if most is not None:
                violations[limit] = float(getattr(outcome, limit)) / most - 1
        gap = self.budget.max_sparsity_gap
        if gap is not None:
            violations["sparsity_gap"] = (
                abs(outcome.realised_sparsity - outcome.target_sparsity) / gap - 1
            )
        return violations
