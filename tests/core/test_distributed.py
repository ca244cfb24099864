"""A trial on several ranks is the trial on one, but for rounding: real processes over gloo."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context

import pytest
import torch

from core.config.trial import TrialConfig
from core.distributed import join_ranks, open_store
from core.runtime import TrialDirs
from core.teacher import prepare
from core.testing import run_as_rank
from core.trial import run

pytestmark = [pytest.mark.slow, pytest.mark.whole]

CPU = torch.device("cpu")


def trial_config(**sections) -> TrialConfig:
    """A trial of a second, without the dropout that ranks draw apart."""
    base = {
        "seed": 3,
        "corpus": {
            "tokens": "word",
            "demo": {"train_utterances": 60, "dev_utterances": 10, "test_utterances": 12},
        },
        "model": {
            "blocks": 2,
            "width": 16,
            "inner": 24,
            "heads": 2,
            "channels": 16,
            "frontend_channels": 8,
        },
        "teacher": {"steps": 4},
        "pruning": {"steps": 6, "calibration_batches": 2},
        "tuning": {"steps": 6},
        "training": {"batch_seconds": 16.0},
        "evaluation": {"latency_repeats": 1, "bootstrap_samples": 100},
        "runtime": {"report_steps": 2, "checkpoint_steps": 3},
    }
    for name, values in sections.items():
        base[name] = base.get(name, {}) | values
    return TrialConfig.parse(base)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Speech and teacher, made once."""
    folder = tmp_path_factory.mktemp("sweep")
    list(prepare(trial_config(), place_in(folder, "unused")))
    return folder


def place_in(shared, name) -> TrialDirs:
    return TrialDirs(
        teacher=shared / "teacher", features=shared / "features", trial=shared / "trials" / name
    )


@pytest.fixture(scope="module")
def others():
    """Processes for further ranks, which serve one trial after another."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield pool


def on_ranks(others, size, config, dirs, *, kill_after=None):
    """Run a trial on so many ranks, of which this process is the first."""
    store = open_store("localhost")
    address = f"localhost:{store.port}"
    futures = [
        others.submit(run_as_rank, config, dirs, rank, size, address) for rank in range(1, size)
    ]
    reports = []
    with join_ranks(rank=0, size=size, store=store, device=CPU) as ranks:
        going = run(config, dirs, ranks)
        while kill_after is None or len(reports) < kill_after:
            try:
                reports.append(next(going))
            except StopIteration as stop:
                outcome, *_ = stop.value  # of a family the first size
                assert [future.result() for future in futures] == [0] * (size - 1)
                return timeless(reports, outcome)
        going.close()
    for future in futures:
        with pytest.raises(RuntimeError):
            future.result()
    return reports


def on_one(config, dirs):
    reports = []
    going = run(config, dirs)
    while True:
        try:
            reports.append(next(going))
        except StopIteration as stop:
            outcome, *_ = stop.value
            return timeless(reports, outcome)


def timeless(reports, outcome):
    reports_alone = [replace(report, audio_seconds_per_second=None) for report in reports]
    return reports_alone, replace(outcome, latency_ms=0.0, latency_busy=None, real_time_factor=0.0)


@pytest.mark.long
def test_a_killed_trial_goes_on_with_its_ranks_to_the_same_numbers(shared, others):
    config = trial_config(tuning={"dropout": 0.1})  # each rank's own chance is kept, too
    dirs = place_in(shared, "killed")

    untouched = on_ranks(others, 2, config, place_in(shared, "untouched"))
    before = on_ranks(others, 2, config, dirs, kill_after=3)
    reports, outcome = on_ranks(others, 2, config, dirs)

    assert (timeless(before, outcome)[0] + reports, outcome) == untouched


@pytest.mark.parametrize(
    ("size", "micro_batches"), [(2, 1), pytest.param(3, 2, marks=pytest.mark.long)]
)
def test_several_ranks_give_the_numbers_of_one(shared, others, size, micro_batches):
    config = trial_config(training={"micro_batches": micro_batches})
    name = f"{size}-{micro_batches}"

    reports_alone, outcome = on_one(config, place_in(shared, f"{name}-alone"))
    told_too, outcome_too = on_ranks(others, size, config, place_in(shared, f"{name}-together"))

    # Not the WER on the way: biases before a batch norm have a gradient of rounding errors alone,
    # and running means are late to follow them. The outcome's statistics are taken anew.
    assert asdict(outcome_too) == asdict(outcome)
    for report, report_too in zip(reports_alone, told_too, strict=True):
        assert report_too.losses == pytest.approx(report.losses, rel=5e-5, abs=1e-7)
        if report.stage == "search":
            assert report_too.expected_sparsity == pytest.approx(report.expected_sparsity, rel=1e-5)
        assert report_too.gflops == report.gflops


def test_ranks_train_the_same_sizes_of_a_family(shared, others):
    family = {"method": "family", "target_sparsity": 0.3, "family": {"drawn_sizes": 1}}
    config = trial_config(pruning=family | {"further_targets": [0.5, 0.6]}, tuning={"steps": 2})

    reports_alone, outcome = on_one(config, place_in(shared, "family-alone"))
    told_too, outcome_too = on_ranks(others, 2, config, place_in(shared, "family-together"))

    assert asdict(outcome_too) == asdict(outcome)
    for report, report_too in zip(reports_alone, told_too, strict=True):
        assert report_too.losses == pytest.approx(report.losses, rel=1e-4, abs=1e-6)


def test_a_trial_begun_on_one_rank_ends_on_two(shared, others):
    config, dirs = trial_config(), place_in(shared, "grown")
    doomed = run(config, dirs)
    first = next(doomed)
    doomed.close()

    reports, outcome = on_ranks(others, 2, config, dirs)

    reports_alone, outcome_alone = on_one(config, place_in(shared, "not grown"))
    assert [first.step, *(report.step for report in reports)] == [r.step for r in reports_alone]
    assert asdict(outcome) == asdict(outcome_alone)
