import pytest
from made_outcomes import make_outcome

from core.config.base import ConfigError
from sweep.config.distributions import Range
from sweep.config.sweep import create, parse
from sweep.ledger.ledger import Ledger
from sweep.search.sampler import STARTUP_TRIALS, Sampling
from sweep.search.warm_start import begin, warm_start_records
from sweep.snapshot import load_snapshot

SPACE = """
[trial.pruning]
steps = 100
target_sparsity = { uniform = [0.2, 0.8] }
"""


def config(text=SPACE):
    return parse(text, source="x.toml")


@pytest.fixture
def old(tmp_path):
    """A finished sweep: the control, and trials at ten targets, one of which failed."""
    folder = tmp_path / "old"
    create(folder, config(), SPACE)
    (folder / "teacher" / "model").mkdir(parents=True)
    ledger = Ledger.create(folder)
    ledger.add({"pruning.method": "dense"}, {})
    targets = [0.2 + 0.06 * i for i in range(11)]
    leaves = {"pruning.target_sparsity": Range(low=0.2, high=0.9)}
    for target in targets:
        ledger.add({"pruning.target_sparsity": target}, leaves)
    for number, target in enumerate([0.0, *targets]):
        ledger.start(number)
        if number == 3:
            ledger.fail(3, "why")
        else:
            ledger.finish(number, [make_outcome(0.05 + 0.1 * target, 3 * (1 - target))])
    ledger.close()
    return load_snapshot(folder)


def new(tmp_path, text=SPACE):
    folder = tmp_path / "new"
    create(folder, config(text), text)
    return folder


def test_what_others_found_is_known_from_the_first_trial(old, tmp_path):
    folder = new(tmp_path)

    assert begin(folder, config(), [old]) == 10
    found = warm_start_records(folder)
    assert [record.number for record in found] == list(range(-1, -11, -1))
    assert {r.params["pruning.target_sparsity"] for r in found} == {
        r.params["pruning.target_sparsity"]
        for r in old.records
        if r.state == "finished" and r.number
    }
    assert (folder / "teacher" / "model").is_dir()


def test_the_model_is_asked_as_soon_as_enough_is_known(old, tmp_path):
    folder = new(tmp_path)
    begin(folder, config(), [old])
    text = '[search]\nsampler = "tpe"\n' + SPACE

    def proposed(records):
        found = config(text)
        sampling = Sampling(found.space, search=found.search, budget=found.sweep)
        for record in records:
            sampling.observe(record)
        return [sampling.propose(number) for number in range(5)]

    alone, warm = proposed([]), proposed(warm_start_records(folder))
    assert len(warm_start_records(folder)) >= STARTUP_TRIALS
    assert warm[:4] == alone[:4], "anchors come first all the same"
    assert warm[4] != alone[4]


def test_only_what_lies_in_the_new_space_is_taken(old, tmp_path):
    narrow = SPACE.replace("[0.2, 0.8]", "[0.5, 0.8]")
    folder = new(tmp_path, narrow)
    begin(folder, config(narrow), [old])

    assert warm_start_records(folder)
    assert all(r.params["pruning.target_sparsity"] >= 0.5 for r in warm_start_records(folder))


def test_what_was_fixed_there_may_be_searched_here(old, tmp_path):
    wide = SPACE.replace("steps = 100", "steps = { int_uniform = [50, 200] }")
    folder = new(tmp_path, wide)
    begin(folder, config(wide), [old])

    assert {r.params["pruning.steps"] for r in warm_start_records(folder)} == {100}


def test_outcomes_of_another_kind_are_refused_by_name(old, tmp_path):
    other = SPACE.replace("steps = 100", "steps = 200")
    folder = new(tmp_path, other)

    with pytest.raises(ConfigError, match=r"`trial.pruning.steps` must be the same"):
        begin(folder, config(other), [old])


def test_a_sweep_without_such_a_beginning_recalls_nothing(tmp_path):
    assert warm_start_records(new(tmp_path)) == []


METHODS = """
[trial.pruning]
method = { choice = ["l0", "acip"] }
target_sparsity = { uniform = [0.2, 0.8] }
steps = 100
[trial.pruning.l0]
lambda_lr = { log_uniform = [0.01, 1.0] }
[trial.pruning.acip]
smallest = { uniform = [0.05, 0.2] }
"""


def test_outcomes_of_one_method_begin_a_sweep_over_several(old, tmp_path):
    folder = new(tmp_path, METHODS)

    assert begin(folder, config(METHODS), [old]) == 10
    for record in warm_start_records(folder):
        assert record.params["pruning.method"] == "l0"
        assert record.params["pruning.l0.lambda_lr"] == 0.1, "its fixed value"
        assert not any(name.startswith("pruning.acip.") for name in record.params)


def test_outcomes_of_a_method_that_the_new_sweep_has_not_are_left_out(old, tmp_path):
    other = METHODS.replace('["l0", "acip"]', '["magnitude", "acip"]')
    other = (
        other[: other.index("[trial.pruning.l0]")] + other[other.index("[trial.pruning.acip]") :]
    )
    folder = new(tmp_path, other)

    assert begin(folder, config(other), [old]) == 0
