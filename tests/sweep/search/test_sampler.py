from dataclasses import replace

import pytest
from made_outcomes import make_outcome

from sweep.config.sweep import parse
from sweep.ledger.records import TrialRecord
from sweep.search.sampler import STARTUP_TRIALS, Sampling, anchors, choose_kind

SPACE = """
[trial]
seed = { int_uniform = [0, 100] }
[trial.pruning]
target_sparsity = { uniform = [0.1, 0.9] }
[trial.pruning.l0]
lambda_lr = { log_uniform = [0.01, 1.0] }
"""


def config(sampler="auto", *, text=SPACE, sweep=""):
    head = f'[sweep]\ntrials = 30\n{sweep}\n[search]\nsampler = "{sampler}"\n'
    return parse(head + text, source="x.toml")


def sampling_of(config):
    return Sampling(config.space, search=config.search, budget=config.sweep)


def finished(number, params):
    target = params.get("pruning.target_sparsity", 0.0)
    outcome = make_outcome(0.05 + 0.3 * target**3, 3.2 * (1 - target), target_sparsity=target)
    return TrialRecord(number=number, state="finished", params=params, outcomes=(outcome,))


def play(config, count, *, delay=2):
    """Propose so many trials; each ends when `delay` others have been proposed after it."""
    sampling, proposed = sampling_of(config), []
    for number in range(count):
        proposed.append(sampling.propose(number))
        if number >= delay:
            sampling.observe(finished(number - delay, proposed[number - delay]))
    return proposed


def test_the_first_trials_are_the_control_and_three_targets():
    control, *others = anchors(config().space)

    assert control == {"pruning.method": "dense"}
    assert [params["pruning.target_sparsity"] for params in others] == [0.1, 0.9, 0.5]
    assert len({params["pruning.l0.lambda_lr"] for params in others}) == 1


def test_without_a_target_to_search_there_are_two():
    text = "[trial.pruning.l0]\nlambda_lr = { log_uniform = [0.01, 1.0] }"

    assert len(anchors(config(text=text).space)) == 2


@pytest.mark.parametrize("sampler", ["qmc", "random"])
def test_points_without_a_model_depend_on_seed_and_number_alone(sampler):
    orderly = play(config(sampler), 12)
    alone = [sampling_of(config(sampler)).propose(number) for number in range(12)]

    assert orderly == alone
    assert orderly != play(config(sampler, sweep="seed = 8"), 12)


SLOW_GP = pytest.param("gp", marks=pytest.mark.slow)


@pytest.mark.parametrize("sampler", [SLOW_GP, "tpe", "nsga2", "qmc", "random", "grid"])
def test_every_point_makes_a_valid_trial(sampler):
    found = config(sampler)
    proposed = play(found, STARTUP_TRIALS + 3)

    for params in proposed:
        found.space.trial_config(params)
    assert len({str(params) for params in proposed}) == len(proposed)


@pytest.mark.parametrize("sampler", [SLOW_GP, "tpe", "nsga2"])
def test_a_resumed_sampler_proposes_what_an_unbroken_one_would(sampler):
    found = config(sampler)
    proposed = play(found, STARTUP_TRIALS + 3)
    again = sampling_of(found)
    number = STARTUP_TRIALS + 2
    for earlier in range(number):
        is_over = earlier < number - 2
        record = finished(earlier, proposed[earlier])
        state = "finished" if is_over else "waiting"
        again.observe(
            TrialRecord(number=earlier, state=state, params=proposed[earlier])
            if not is_over
            else record
        )

    assert again.propose(number) == pytest.approx(proposed[number])


@pytest.mark.long
@pytest.mark.slow
def test_a_model_leaves_the_worthless_alone():
    """With WER limited to what small targets reach, the model stays near those."""
    free = play(config("gp"), 17)[STARTUP_TRIALS + 2 :]
    limited = play(config("gp", sweep="max_wer = 0.07"), 17)[STARTUP_TRIALS + 2 :]

    def mean(found):
        return sum(params["pruning.target_sparsity"] for params in found) / len(found)

    assert mean(limited) < mean(free)


def test_a_sweep_over_methods_alone_begins_with_the_control_that_is_none_of_them():
    text = '[trial.pruning]\ntarget_sparsity = 0.5\nmethod = { choice = ["l0", "acip"] }'
    sampling = sampling_of(config(text=text))

    proposed = [sampling.propose(number) for number in range(4)]
    for number, params in enumerate(proposed):
        sampling.observe(TrialRecord(number=number, state="running", params=params))
        sampling.observe(finished(number, params))

    assert proposed[0] == {"pruning.method": "dense"}
    assert all(params["pruning.method"] in ("l0", "acip") for params in proposed[1:])


@pytest.mark.slow
def test_failed_and_control_trials_do_not_disturb_the_model():
    sampling = sampling_of(config("gp"))
    for number in range(STARTUP_TRIALS):
        params = sampling.propose(number)
        if number % 2:
            sampling.observe(finished(number, params))
        else:
            sampling.observe(TrialRecord(number=number, state="failed", params=params))

    assert set(sampling.propose(STARTUP_TRIALS)) == set(sampling.space.distributions)


def test_auto_takes_tpe_where_there_are_choices_or_many_trials():
    flat = config().space
    choice = config(text='[trial.pruning]\nrepair = { choice = ["none", "ls"] }').space

    assert choose_kind("auto", flat, 30) == "gp"
    assert choose_kind("auto", flat, 1000) == "tpe"
    assert choose_kind("auto", choice, 30) == "tpe"
    assert choose_kind("random", flat, 30) == "random"


def test_a_grid_is_walked_whole_and_once():
    found = config("grid")
    sampling = sampling_of(found)
    points = [sampling.propose(number) for number in range(found.num_trials)]
    searched = [{k: v for k, v in p.items() if k != "seed"} for p in points[1:]]

    assert found.num_trials == 26
    assert points[0] == {"pruning.method": "dense"}
    targets = sorted({p["pruning.target_sparsity"] for p in searched})
    assert targets == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    assert len({str(p) for p in searched}) == 25


def test_a_third_objective_is_searched_too():
    found = config("tpe", sweep='objectives = ["wer", "gflops", "latency_ms"]')

    assert len(play(found, STARTUP_TRIALS + 3)) == STARTUP_TRIALS + 3


@pytest.mark.long
@pytest.mark.slow
def test_a_model_leaves_what_misses_its_target_alone():
    """Every other trial misses its target by far; a limit on that makes it worthless."""
    sampling = sampling_of(config("gp", sweep="max_sparsity_gap = 0.02"))
    for number in range(STARTUP_TRIALS + 2):
        params = sampling.propose(number)
        record = finished(number, params)
        target = params.get("pruning.target_sparsity", 0.0)
        missed = make_outcome(0.01, 0.1, target_sparsity=target, realised_sparsity=target / 2)
        sampling.observe(replace(record, outcomes=(missed,)) if target > 0.6 else record)

    proposed = [sampling.propose(STARTUP_TRIALS + 2 + i) for i in range(3)]
    assert min(p["pruning.target_sparsity"] for p in proposed) < 0.6


def test_each_outcome_of_a_curve_is_told_as_the_target_it_was_for():
    sampling = sampling_of(config("gp"))
    params = sampling.propose(1)
    record = finished(1, params)
    further = [make_outcome(0.1, 1.6, target_sparsity=0.5), make_outcome(0.2, 0.1)]
    further[1] = replace(further[1], target_sparsity=0.95)  # outside the space

    sampling.observe(replace(record, outcomes=(*record.outcomes, *further)))

    told = sampling._study.get_trials()
    targets = {trial.params["pruning.target_sparsity"]: trial.values for trial in told}
    assert targets == {0.1: [record.outcomes[0].wer, record.outcomes[0].gflops], 0.5: [0.1, 1.6]}


CONDITIONAL = """
[trial.pruning]
method = { choice = ["l0", "acip", "magnitude"] }
target_sparsity = { uniform = [0.1, 0.9] }
[trial.pruning.l0]
lambda_lr = { log_uniform = [0.01, 1.0] }
start_from = { choice = ["ld", "random"] }
[trial.pruning.ld]
groups = { int_uniform = [2, 40] }
[trial.pruning.acip]
smallest = { uniform = [0.05, 0.2] }
"""


@pytest.mark.parametrize("sampler", ["auto", "tpe", "nsga2", "qmc", "random", "grid"])
def test_a_trial_has_the_parameters_of_its_own_methods_alone(sampler):
    found = config(sampler, text=CONDITIONAL)
    proposed = play(found, STARTUP_TRIALS + 8)

    for params in proposed[1:]:
        assert set(params) == set(found.space.active_leaves(params))
        found.space.trial_config(params)
    if sampler != "auto":
        assert len({params["pruning.method"] for params in proposed[1:]}) > 1


def observe_conditional(sampling, count=60):
    """Tell a sampler of trials of which only `acip` with a small smallest size is good."""
    for number in range(1, count):
        params = sampling._scatter(number)
        smallest = params.get("pruning.acip.smallest", 0.2)
        outcome = make_outcome(0.05 + 3 * (smallest - 0.05), 1.0)
        record = TrialRecord(number=number, state="finished", params=params, outcomes=(outcome,))
        sampling.observe(record)


def test_the_model_knows_the_leaves_of_one_method():
    """Proposals of `acip` crowd where its own leaf was good, which a random draw would not."""
    sampling = sampling_of(config("tpe", text=CONDITIONAL))
    observe_conditional(sampling)

    proposed = [sampling.propose(60 + number) for number in range(12)]

    sizes = [p["pruning.acip.smallest"] for p in proposed if p["pruning.method"] == "acip"]
    assert len(sizes) > 6
    assert sum(size < 0.1 for size in sizes) > 0.6 * len(sizes)


def test_trials_of_a_conditional_space_reach_the_study_with_their_own_leaves():
    sampling = sampling_of(config("tpe", text=CONDITIONAL))
    observe_conditional(sampling, 12)

    for trial in sampling._study.get_trials():
        assert set(trial.distributions) == set(sampling.space.active_leaves(trial.params))


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_resumed_sampler_of_a_conditional_space_proposes_the_same(sampler):
    found = config(sampler, text=CONDITIONAL)
    proposed = play(found, STARTUP_TRIALS + 5)
    again, number = sampling_of(found), STARTUP_TRIALS + 4
    for earlier in range(number - 2):
        again.observe(finished(earlier, proposed[earlier]))
    for earlier in (number - 2, number - 1):
        again.observe(TrialRecord(number=earlier, state="waiting", params=proposed[earlier]))

    assert again.propose(number) == pytest.approx(proposed[number])
