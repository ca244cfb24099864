"""Laws of the single door: what a command that only reads loads, opens and asks."""

import json
import subprocess
import sys

import pytest
from made_outcomes import make_outcome

from sweep.config.distributions import Range
from sweep.config.sweep import create, load
from sweep.ledger.files import FILE
from sweep.ledger.ledger import Ledger
from sweep.run.start import create_sweep

WATCHED = """
import atexit, json, os, sys
from sweep.cli.app import main
opened = []
def record(event, arguments):
    if event == "sqlite3.connect" or event == "open" and str(arguments[0]).endswith(".db"):
        opened.append(str(arguments[0]))
sys.addaudithook(record)
LIBRARIES = {"torch", "fsspec", "s3fs", "ray", "mlflow", "optuna", "moocore", "numpy", "scipy"}
def report():
    loaded = sorted(LIBRARIES & set(sys.modules))
    print(json.dumps({"loaded": loaded, "opened": opened}), file=sys.stderr)
atexit.register(report)
main()
"""


LEAVES = {"pruning.target_sparsity": Range(low=0.2, high=0.8)}


@pytest.fixture
def folder(tiny_space, tmp_path):
    """A sweep's directory with three finished trials."""
    folder = tmp_path / "sweep"
    create(folder, load(str(tiny_space)), tiny_space.read_text())
    ledger = Ledger.create(folder)
    for number, (wer, gflops) in enumerate([(0.04, 3.2), (0.05, 2.0), (0.09, 1.0)]):
        ledger.add({"pruning.target_sparsity": 0.5}, LEAVES)
        ledger.start(number)
        ledger.finish(number, [make_outcome(wer, gflops)])
    ledger.close()
    return folder


@pytest.mark.parametrize("command", ["status", "pareto", "trials"])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_plain_directory_needs_no_heavy_library_and_one_opening_of_the_ledger(
    folder, command, options
):
    words = [sys.executable, "-P", "-c", WATCHED, command, str(folder), *options]
    done = subprocess.run(words, check=True, capture_output=True, text=True)  # noqa: S603
    seen = json.loads(done.stderr)

    assert seen["loaded"] == []
    assert len(seen["opened"]) == 1
    assert FILE in seen["opened"][0]
    assert done.stdout


def test_a_sweep_is_created_from_one_reading_of_its_space(tiny_space, tmp_path):
    opened = []
    # An audit hook cannot be removed: this one records nothing any more once the test is over.
    is_over = []
    sys.addaudithook(
        lambda event, arguments: (
            opened.append(str(arguments[0])) if event == "open" and not is_over else None
        )
    )
    create_sweep(str(tiny_space), tmp_path / "new")
    is_over.append(True)

    assert opened.count(str(tiny_space)) == 1
    assert (tmp_path / "new" / "sweep.original.toml").read_text() == tiny_space.read_text()
