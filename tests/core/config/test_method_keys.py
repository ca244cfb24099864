"""Which keys belong to which methods: what their files state is what they read in a real trial."""

from pathlib import Path

import pytest

from core.config.method_keys import methods_that_read, stated_keys, unused_key_line, unused_keys
from core.config.pruning import PruningConfig
from core.config.trial import BoostingConfig, TrialConfig, method_names
from core.runtime import TrialDirs
from core.teacher import prepare
from core.trial import run

GATES = {"start_from": "magnitude", "gate_travel": 5.0}
"""Under which gates read what they do not read by default."""


def trial_config(**pruning) -> TrialConfig:
    return TrialConfig.parse(
        {
            "corpus": {
                "tokens": "word",
                "demo": {"train_utterances": 24, "dev_utterances": 4, "test_utterances": 4},
            },
            "model": {
                "blocks": 2,
                "width": 16,
                "inner": 16,
                "heads": 2,
                "channels": 16,
                "frontend_channels": 4,
            },
            "teacher": {"steps": 1},
            "pruning": {"steps": 4, "calibration_batches": 1, **pruning},
            "tuning": {"steps": 2},
            "training": {"batch_seconds": 8.0},
            "evaluation": {"latency_repeats": 1, "bootstrap_samples": 100},
        }
    )


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    list(prepare(trial_config(), place_in(folder, "unused")))
    return folder


def place_in(shared: Path, name: str) -> TrialDirs:
    return TrialDirs(teacher=shared / "teacher", features=shared / "features", trial=shared / name)


def keys_read(config: TrialConfig, place: TrialDirs) -> set[str]:
    """The keys of `pruning` and `boosting` that a whole trial reads."""
    read: set[str] = set()

    class Pruning(PruningConfig):
        def __getattribute__(self, name):
            read.add(f"pruning.{name}")
            return super().__getattribute__(name)

    class Boosting(BoostingConfig):
        def __getattribute__(self, name):
            read.add(f"boosting.{name}")
            return super().__getattribute__(name)

    sections = {
        "pruning": Pruning.model_validate(config.pruning.model_dump()),
        "boosting": Boosting.model_validate(config.boosting.model_dump()),
    }
    watched = config.model_copy(update=sections)
    read.clear()
    list(run(watched, place))
    return read


@pytest.mark.slow
@pytest.mark.parametrize("method", method_names())
def test_a_method_reads_those_keys_that_its_file_states_and_no_others(shared, method):
    read = keys_read(trial_config(method=method), place_in(shared, method))
    if method in methods_that_read("pruning.start_from"):
        config = trial_config(method=method, **GATES)
        read |= keys_read(config, place_in(shared, f"{method}-gates"))

    stated = {key for key in stated_keys() if method in methods_that_read(key)}

    # A copy of all of `boosting` is made, in which this weight is another's.
    assert stated == read & set(stated_keys()) - {"boosting.task_weight"}


def test_every_stated_key_is_a_key():
    known = TrialConfig().model_dump()
    for key in stated_keys():
        section, name = key.split(".")
        assert name in known[section]


def test_a_key_is_unused_only_if_no_method_in_use_reads_it():
    keys = ["pruning.smallest", "pruning.steps", "pruning.rounds"]

    assert unused_keys(keys, ["l0"]) == ["pruning.smallest", "pruning.rounds"]
    assert unused_keys(keys, ["l0", "cpd"]) == ["pruning.smallest"]
    assert unused_keys(keys, ["acip", "cpd"]) == []


def test_the_line_for_an_unused_key_names_key_methods_value_and_repair():
    line = unused_key_line("pruning.groups", 4, ["l0"])

    assert line == (
        "`pruning.groups` must be left out where `pruning.method` is `l0`, which does not read it,"
        " but is 4 instead; it belongs to `ld`, `mope`: remove it, or choose such a method"
    )
