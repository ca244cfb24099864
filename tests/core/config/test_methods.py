"""Each method's file has its settings, and a real trial reads those settings and no others."""

import pickle
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from core.config.methods import (
    METHODS_FOLDER,
    method_names,
    methods_that_read,
    methods_with_setting,
    restricted_keys,
    settings_class,
    settings_tables,
    unused_key_line,
    unused_keys,
)
from core.config.pruning import PruningConfig
from core.config.trial import BoostingConfig, TrialConfig
from core.runtime import TrialDirs
from core.teacher import prepare
from core.trial import run

pytestmark = pytest.mark.whole

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
    """The keys of `pruning`, `boosting` and the method's own table that a whole trial reads."""
    read: set[str] = set()
    kinds: dict[type, type] = {}

    def watched_kind(kind: type, prefix: str) -> type:
        """The same class of settings, whose reads are noted."""
        if kind not in kinds:

            class Watched(kind):
                def __getattribute__(self, name):
                    read.add(f"{prefix}.{name}")
                    return super().__getattribute__(name)

            kinds[kind] = Watched
        return kinds[kind]

    class Pruning(PruningConfig):
        def __getattribute__(self, name):
            read.add(f"pruning.{name}")
            return super().__getattribute__(name)

        def settings(self, kind):
            return super().settings(watched_kind(kind, f"pruning.{self.method}"))

    sections = {
        "pruning": Pruning.model_validate(config.pruning.model_dump()),
        "boosting": watched_kind(BoostingConfig, "boosting").model_validate(
            config.boosting.model_dump()
        ),
    }
    watched = config.model_copy(update=sections)
    read.clear()
    list(run(watched, place))
    return read


@pytest.mark.slow
@pytest.mark.parametrize("method", method_names())
def test_a_method_reads_the_settings_of_its_file_and_no_others(shared, method):
    read = keys_read(trial_config(method=method), place_in(shared, method))
    if method in methods_with_setting("start_from"):
        config = trial_config(method=method, **{method: GATES})
        read |= keys_read(config, place_in(shared, f"{method}-gates"))

    own = {f"pruning.{method}.{key}" for key in settings_class(method).model_fields}
    restricted = {key for key in restricted_keys() if method in methods_that_read(key)}

    assert own == {key for key in read & all_settings() if f".{method}." in key}
    # A copy of all of `boosting` is made, in which this weight is another's.
    assert restricted == read & set(restricted_keys()) - {"boosting.task_weight"}


def all_settings() -> set[str]:
    tables = settings_tables()
    return {f"pruning.{name}.{key}" for name in tables for key in tables[name].model_fields}


@pytest.mark.parametrize("method", method_names())
def test_the_settings_read_without_torch_are_those_of_the_imported_file(method):
    imported = getattr(import_module(f"core.methods.{method}"), "Settings", None)
    fields = {} if imported is None else imported.model_fields

    assert repr(settings_class(method).model_fields) == repr(fields)
    if imported is not None:
        assert settings_class(method).reads == imported.reads
        assert settings_class(method).ignores == imported.ignores


def test_a_configuration_is_read_without_torch():
    code = (
        "import sys; from core.config.trial import TrialConfig;"
        " TrialConfig.parse({'pruning': {'method': 'acip', 'acip': {'smallest': 0.2}}});"
        " sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)  # noqa: S603
    assert done.returncode == 0


def test_a_new_method_with_a_setting_is_one_file(tmp_path):
    root = METHODS_FOLDER.parents[1]
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / "core", tmp_path / "core", ignore=ignore)
    source = (root / "core" / "methods" / "comp.py").read_text(encoding="utf-8")
    source = source.replace("coarse_share", "new_share").replace("0.3, ge=0", "0.4, ge=0")
    (tmp_path / "core" / "methods" / "newest.py").write_text(source, encoding="utf-8")
    code = (
        "from core.config.trial import TrialConfig\n"
        "print(TrialConfig.parse({'pruning': {'method': 'newest'}}).pruning.newest.new_share)\n"
        "try:\n    TrialConfig.parse({'pruning': {'newest': {'new_share': 0.2}}})\n"
        "except ValueError as error:\n    print(error)\n"
    )

    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    default, refusal = done.stdout.splitlines()
    assert default == "0.4"
    assert refusal.startswith("`pruning.newest.new_share` must be left out where `pruning.method`")


def test_a_configuration_survives_being_sent_to_another_process():
    config = trial_config(method="acip", acip={"smallest": 0.2})

    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301


def test_every_restricted_key_is_a_key():
    config = TrialConfig().model_dump()
    for key in restricted_keys():
        section, name = key.split(".")
        assert name in config[section]


def test_a_key_is_unused_only_if_no_method_in_use_reads_it():
    keys = ["pruning.acip.smallest", "pruning.steps", "pruning.cpd.rounds"]

    assert unused_keys(keys, ["l0"]) == ["pruning.acip.smallest", "pruning.cpd.rounds"]
    assert unused_keys(keys, ["l0", "cpd"]) == ["pruning.acip.smallest"]
    assert unused_keys(keys, ["acip", "cpd"]) == []


def test_the_line_for_an_unused_key_names_key_methods_value_and_repair():
    line = unused_key_line("pruning.further_targets", [0.3], ["cpd"])

    assert line.startswith(
        "`pruning.further_targets` must be left out where `pruning.method` is `cpd`, which does"
        " not read it, but is [0.3] instead; it belongs to `acip`, `comp`,"
    )
    assert line.endswith(": remove it, or choose such a method")
