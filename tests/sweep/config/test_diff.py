import pytest

from core.config.base import ConfigError
from sweep.config.diff import changes, check
from sweep.config.sweep import parse

BEFORE = """
[sweep]
trials = 8
[trial.pruning]
steps = 100
target_sparsity = { uniform = [0.2, 0.8] }
repair = { choice = ["none", "ls"] }
[trial.pruning.l0]
lambda_lr = { log_uniform = [0.01, 1.0] }
"""


def changed(before, after):
    assert before in BEFORE
    old = parse(BEFORE, source="x.toml")
    return changes(old, parse(BEFORE.replace(before, after), source="x.toml"))


def test_nothing_changes_between_equals():
    assert changed("trials", "trials") == []
    config = parse(BEFORE, source="x.toml")
    assert changes(config, parse(config.toml(), source="y.toml")) == []


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("trials = 8", "trials = 9", "sweep.trials: 8 -> 9"),
        (
            "[0.2, 0.8]",
            "[0.1, 0.8]",
            "trial.pruning.target_sparsity: uniform [0.2, 0.8] -> uniform [0.1, 0.8]",
        ),
        (
            '["none", "ls"]',
            '["mask", "none", "ls"]',
            "trial.pruning.repair: choice [none, ls] -> choice [mask, none, ls]",
        ),
        ("[trial.pruning]", "[trial.runtime]\nthreads = 2\n[trial.pruning]", "threads: 1 -> 2"),
        ("[trial.pruning]", "[resources]\ncpus = 2\n[trial.pruning]", "resources.cpus: 1 -> 2"),
    ],
)
def test_more_of_the_same_is_allowed_and_named(before, after, said):
    found = changed(before, after)

    check(found)
    assert said in str(found[0])


@pytest.mark.parametrize(
    ("before", "after", "culprit"),
    [
        ("steps = 100", "steps = 200", "`trial.pruning.steps`.*100, but is 200"),
        ("[0.2, 0.8]", "[0.3, 0.8]", "`trial.pruning.target_sparsity`.*uniform .0.3, 0.8"),
        ("{ uniform = [0.2, 0.8] }", "0.5", "`trial.pruning.target_sparsity`.*but is 0.5"),
        ("log_uniform", "uniform", "`trial.pruning.l0.lambda_lr`"),
        ('["none", "ls"]', '["none"]', "`trial.pruning.repair`"),
        ("[trial.pruning]", "[trial.model]\nwidth = 96\n[trial.pruning]", "`trial.model.width`"),
    ],
)
def test_what_would_mix_two_kinds_of_trials_is_refused_by_name(before, after, culprit):
    with pytest.raises(ConfigError, match=culprit):
        check(changed(before, after))


def test_fixed_settings_of_every_method_of_a_choice_are_compared():
    text = """
[trial.pruning]
method = { choice = ["magnitude", "l0", "acip"] }
[trial.pruning.acip]
smallest = 0.1
[trial.pruning.l0]
lambda_lr = { log_uniform = [0.01, 1.0] }
"""
    old = parse(text, source="x.toml")
    assert changes(old, parse(old.toml(), source="y.toml")) == []

    with pytest.raises(ConfigError, match=r"`trial.pruning.acip.smallest`.*0.1, but is 0.2"):
        check(changes(old, parse(text.replace("smallest = 0.1", "smallest = 0.2"), source="x")))
    wider = changes(old, parse(text.replace("[0.01, 1.0]", "[0.01, 2.0]"), source="x"))
    check(wider)
    assert [change.name for change in wider] == ["trial.pruning.l0.lambda_lr"]
