import pytest

from core.config.trial import TrialConfig
from sweep.config.space import SearchSpace
from sweep.ledger.records import TrialRecord
from sweep.search.retry import adjust_config, is_hopeless

CONFIG = TrialConfig.parse(
    {"pruning": {"l0": {"learning_rate": 1e-3}}, "tuning": {"learning_rate": 2e-3}}
)
RECORD = TrialRecord(number=0, state="running")


def with_parts(parts):
    return TrialConfig.parse({"training": {"micro_batches": parts}})


def test_too_little_memory_halves_what_is_held_at_a_time():
    assert adjust_config("memory", CONFIG, RECORD) == {"training.micro_batches": 2}
    assert adjust_config("memory", with_parts(2), RECORD) == {"training.micro_batches": 4}


def test_somewhere_memory_is_given_up():
    assert adjust_config("memory", with_parts(16), RECORD) is None


def test_divergence_lowers_the_rates_once():
    found = adjust_config("divergence", CONFIG, RECORD)

    assert found == pytest.approx({"pruning.l0.learning_rate": 3e-4, "tuning.learning_rate": 6e-4})
    again = TrialRecord(number=0, state="running", adjustments=found)
    assert adjust_config("divergence", CONFIG, again) is None


def test_a_method_that_does_not_train_while_it_searches_has_one_rate_to_lower():
    config = TrialConfig.parse({"pruning": {"method": "magnitude"}})

    assert set(adjust_config("divergence", config, RECORD)) == {"tuning.learning_rate"}


@pytest.mark.parametrize("kind", ["data", "other"])
def test_what_would_fail_again_is_over(kind):
    assert adjust_config(kind, CONFIG, RECORD) is None


@pytest.mark.parametrize("kind", ["memory", "divergence"])
def test_every_adjustment_is_a_leaf_of_a_trial(kind):
    SearchSpace.parse({}).trial_config(adjust_config(kind, CONFIG, RECORD))


def failed(number, error="`a.flac` is damaged"):
    return TrialRecord(number=number, state="failed", error=error)


def test_three_first_trials_with_one_fault_are_hopeless():
    assert is_hopeless([failed(0), failed(1), failed(2)])
    assert not is_hopeless([failed(0), failed(1)])
    assert not is_hopeless([failed(0), failed(1), failed(2, "another")])
    done = TrialRecord(number=3, state="finished")
    assert not is_hopeless([failed(0), failed(1), failed(2), done])
