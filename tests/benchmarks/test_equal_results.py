"""benchmarks/robustness/equal_results.py sees every number that changed, and no name."""

import importlib
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.config.methods import method_names

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Before:
    wer: float
    losses: dict[str, float]
    latency_ms: float = 0.0
    stage: str = "search"
    test_wer: float | None = None


@dataclass(frozen=True)
class Interval:
    value: float


@dataclass(frozen=True)
class After:
    terms: dict[str, float]
    error_rate: Interval
    phase: str = "searching"


@pytest.fixture(scope="module")
def digests():
    return importlib.import_module("benchmarks.lib.result_digests")


def case(digests, folder, record, name="weight", tensor=None):
    folder.mkdir(exist_ok=True)
    save_file(
        {name: torch.arange(6.0) if tensor is None else tensor}, folder / f"{name}.safetensors"
    )
    return {"cases": {"a": digests.case_of([record], [record], folder)}, "torch": "2"}


def lines(digests, before, after, *, with_names=False):
    return list(digests.differences(before, after, with_names=with_names))


def test_renamed_fields_keys_files_and_tensors_are_no_difference(digests, tmp_path):
    before = case(digests, tmp_path / "a", Before(0.5, {"task": 1.0, "logit": 2.0}, latency_ms=3.0))
    after = case(digests, tmp_path / "b", After({"ctc": 1.0, "kd": 2.0}, Interval(0.5)), "kernel")

    assert lines(digests, before, after) == []
    assert lines(digests, before, after, with_names=True)


def test_one_last_bit_is_a_difference_and_is_named(digests, tmp_path):
    before = case(digests, tmp_path / "a", Before(0.5, {"task": 1.0}))
    after = case(digests, tmp_path / "b", Before(0.5, {"task": math.nextafter(1.0, 2.0)}))

    actual = lines(digests, before, after)

    assert len(actual) == 2  # of the report and of the outcome
    assert all("losses.task 1 -> 1" in line for line in actual)


@pytest.mark.parametrize(
    "changed",
    [
        torch.arange(6.0).nextafter(torch.tensor(9.0)),
        torch.arange(6.0).reshape(2, 3),
        torch.arange(6.0).double(),
        -torch.arange(6.0),
    ],
    ids=["bit", "shape", "kind", "sign"],
)
def test_other_weights_are_a_difference(digests, tmp_path, changed):
    record = Before(0.5, {})
    before = case(digests, tmp_path / "a", record)
    after = case(digests, tmp_path / "b", record, tensor=changed)

    assert lines(digests, before, after) == ["a: weights 0: 1 of 1 tensors differ"]


def test_a_case_or_a_report_that_is_missing_is_a_difference(digests, tmp_path):
    before = case(digests, tmp_path / "a", Before(0.5, {}))
    after = json.loads(json.dumps(before))
    after["cases"]["b"] = after["cases"]["a"]
    after["cases"]["a"] = {**before["cases"]["a"], "reports": []}

    assert lines(digests, before, after) == ["a: 1 reports before, 0 after", "b: only after"]


def test_another_torch_is_a_difference(digests, tmp_path):
    before = case(digests, tmp_path / "a", Before(0.5, {}))

    assert lines(digests, before, {**before, "torch": "3"}) == ["torch: 2 before, 3 after"]


def test_a_method_without_a_case_is_refused():
    script = importlib.import_module("benchmarks.robustness.equal_results")
    groups = ("native", "two ranks", *(file.stem for file in script.MODELS.glob("*.nemo")))
    cases = [f"{group}/{method}" for group in groups for method in method_names()]

    script.check_coverage(cases, method_names())

    with pytest.raises(RuntimeError, match="two ranks/l0"):
        script.check_coverage([name for name in cases if name != "two ranks/l0"], method_names())


def test_every_name_resolves_in_this_tree():
    script = importlib.import_module("benchmarks.robustness.equal_results")

    assert all(callable(script.resolve(name)) for name in script.IMPORT_PATHS)


@pytest.mark.slow
@pytest.mark.long
def test_two_runs_are_equal_and_the_command_says_so(tmp_path):
    script = [sys.executable, "-m", "benchmarks.robustness.equal_results"]
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file in files:
        command = [*script, "--only", "native/magnitude", "--out", file]
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)  # noqa: S603
    changed = json.loads(files[0].read_text())
    changed["cases"]["native/magnitude"]["weights"][0][0] = "0"
    (tmp_path / "c.json").write_text(json.dumps(changed))

    equal, other = (
        subprocess.run(  # noqa: S603
            [*script, "--compare", *pair],
            check=False,
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        for pair in (files, (files[0], tmp_path / "c.json"))
    )

    assert (equal.returncode, equal.stdout) == (0, "equal: 2 cases\n")
    assert other.returncode == 1
    assert "native/magnitude: weights 0: 1 of" in other.stdout
