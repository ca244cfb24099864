"""Real sweeps of tiny trials: real speech, real training, real Ray, real MLflow."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from mlflow import MlflowClient

from core.config.base import ConfigError
from sweep.config.sweep import create, load, open_config, rewrite
from sweep.ledger.ledger import Ledger
from sweep.local_lock import LockedError
from sweep.run import driver
from sweep.search.budget import extended_budget
from sweep.search.confirm import confirmations, plan, summarize_confirmations
from sweep.snapshot import load_snapshot
from sweep.storage.lock import request_stop, sweep_lock
from sweep.summary import trial_rows
from sweep.tracking.tracker import database_uri

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def make(tiny_space, tmp_path, tiny_shared, empty_database):
    """Make a sweep's directory from the tiny space, with some of its text replaced.

    Speech, teacher and MLflow's tables are there already, unless it shall make them itself.
    """

    def make_sweep(*, is_bare=False, **replaced):
        text = tiny_space.read_text()
        for before, after in replaced.values():
            assert before in text
            text = text.replace(before, after)
        tiny_space.write_text(text)
        folder = tmp_path / "sweep"
        create(folder, load(str(tiny_space)), text)
        if not is_bare:
            shutil.copytree(tiny_shared, folder, dirs_exist_ok=True)
            shutil.copy(empty_database, folder / "mlflow.db")
        return folder

    return make_sweep


def records_of(folder):
    ledger = Ledger.open(folder)
    ledger.close()
    return ledger.records()


def runs_of(folder):
    client = MlflowClient(database_uri(folder))
    experiments = [e.experiment_id for e in client.search_experiments()]
    return list(client.search_runs(experiments, max_results=1000))


def events_of(folder):
    path = folder / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.usefixtures("ray_cluster")
def test_a_sweep_ends_with_every_trial_judged_and_recorded(make):
    folder = make(is_bare=True)

    assert driver.run(folder) == driver.DONE
    records = records_of(folder)
    assert [record.state for record in records] == ["finished"] * 4
    assert records[0].params == {"pruning.method": "dense"}
    assert [r.params["pruning.target_sparsity"] for r in records[1:]] == [0.2, 0.8, 0.5]
    runs = {run.info.run_id: run.info.status for run in runs_of(folder)}
    assert len(runs) == 5
    assert set(runs.values()) == {"FINISHED"}
    assert {record.mlflow_run_id for record in records} < set(runs)
    for record in records:
        model = folder / "trials" / f"{record.number:04}" / record.outcomes[0].model
        assert (model / "model.safetensors").exists()
    for record in records:
        outcome = record.outcomes[0]
        assert outcome.latency_idle
        assert outcome.speedup_low <= outcome.speedup <= outcome.speedup_high
        values = MlflowClient(database_uri(folder)).get_run(record.mlflow_run_id).data.metrics
        assert values["latency_ms"] == outcome.latency_ms
        assert values["speedup"] == outcome.speedup
    assert "data-listen" in (folder / "front" / "front.html").read_text("utf-8")
    rows = trial_rows(load_snapshot(folder))
    assert {"trial", "state", "wer", "on_front", "config", "mlflow_run_id"} <= set(rows[0])

    assert driver.run(folder) == driver.DONE, "a finished sweep has nothing left to do"
    assert [record.attempts for record in records_of(folder)] == [1] * 4
    assert len(runs_of(folder)) == 5


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_a_sweep_runs_and_is_extended_with_its_ledger_on_a_server(make, postgres):
    folder = make(trials=("trials = 4", f'trials = 2\nledger = "{postgres}"'))

    assert driver.run(folder) == driver.DONE
    before, config = records_of(folder), open_config(folder)
    rewrite(folder, config.with_budget(**extended_budget(before, config, trials=1, hours=None)))
    assert driver.run(folder) == driver.DONE
    assert [record.state for record in load_snapshot(folder).records] == ["finished"] * 3
    assert records_of(folder)[:2] == before
    assert not (folder / "ledger.db").exists()


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_that_cannot_be_fails_in_one_line_and_alone(make):
    folder = make(
        axes=("steps = 2\ncalibration", 'axes = ["head"]\nsteps = 2\ncalibration'),
        target=("[0.2, 0.8]", "[0.01, 0.8]"),
        trials=("trials = 4", "trials = 3"),
    )

    assert driver.run(folder) == driver.SOME_FAILED
    states = [record.state for record in records_of(folder)]
    assert states == ["finished", "finished", "failed"]
    failed = records_of(folder)[2]
    assert failed.error
    assert "\n" not in failed.error
    assert "Traceback" in (folder / "logs" / "trial-0002.log").read_text()
    assert Counter(r.info.status for r in runs_of(folder)) == {"FINISHED": 3, "FAILED": 1}


@pytest.mark.usefixtures("ray_cluster")
def test_a_corpus_that_cannot_be_used_is_the_callers_to_put_right(make, tmp_path):
    (tmp_path / "speech").mkdir()
    folder = make(
        is_bare=True, corpus=("[trial.corpus]", f'[trial.corpus]\nname = "{tmp_path / "speech"}"')
    )

    with pytest.raises(ValueError, match="speech"):
        driver.run(folder)
    assert records_of(folder) == []


@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_that_fits_no_machine_is_refused(make):
    folder = make(cpus=("[trial.corpus]", "[resources]\ncpus = 999\n[trial.corpus]"))

    with pytest.raises(ValueError, match=r"`resources.cpus` must be at most"):
        driver.run(folder)


def test_a_live_sweep_is_nobody_elses(make):
    folder = make()

    with sweep_lock(folder), pytest.raises(LockedError, match="runs this sweep"):
        driver.run(folder)


def test_a_folder_without_a_sweep_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="must hold a sweep"):
        driver.run(tmp_path)


def start(folder):
    code = f"""
import sys
from pathlib import Path
from sweep.run import driver
sys.exit(driver.run(Path({str(folder)!r})))
"""
    return subprocess.Popen([sys.executable, "-P", "-c", code])  # noqa: S603


def wait_for_reports(folder, count):
    deadline = time.monotonic() + 600
    while sum(event["event"] == "report" for event in events_of(folder)) < count:
        assert time.monotonic() < deadline, "no reports"
        time.sleep(0.1)


def longer(make):
    """Trials of some seconds, so that there is a middle to interrupt."""
    return make(
        search=("lambda_lr = { log", "gate_lr = 0.1\nlambda_lr = { log"),
        steps=("[trial.tuning]\nsteps = 2", "[trial.tuning]\nsteps = 60"),
    )


@pytest.mark.long
def test_a_killed_driver_costs_nothing_but_time(make):
    folder = longer(make)
    process = start(folder)
    wait_for_reports(folder, 6)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert any(record.state == "running" for record in records_of(folder))

    assert start(folder).wait() == driver.DONE
    records = records_of(folder)
    assert [record.state for record in records] == ["finished"] * 4
    assert max(record.attempts for record in records) == 2
    runs = runs_of(folder)
    numbers = Counter(run.data.tags.get("sweep.trial", "parent") for run in runs)
    assert numbers == {"parent": 1, "0": 1, "1": 1, "2": 1, "3": 1}
    assert {run.info.status for run in runs} == {"FINISHED"}
    over = Counter(e["trial"] for e in events_of(folder) if e["event"] == "finished")
    assert over == {0: 1, 1: 1, 2: 1, 3: 1}
    client = MlflowClient(database_uri(folder))
    for run in runs:
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "val/wer")]
        assert steps == sorted(set(steps))


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_what_trials_said_while_no_driver_heard_is_in_the_ledger_at_last(make):
    folder = make(one=("trials = 4", "trials = 2"))
    assert driver.run(folder) == driver.DONE
    reported = [(r.steps, r.total_steps, r.curve) for r in records_of(folder)]
    assert [steps for steps, *_ in reported] == [4, 4]

    for path in folder.glob("ledger.db*"):  # as if the driver had died before it heard a word
        path.unlink()
    assert driver.run(folder) == driver.DONE
    assert [(r.steps, r.total_steps, r.curve) for r in records_of(folder)] == reported


@pytest.mark.long
def test_a_terminated_driver_ends_in_order_and_can_be_resumed(make):
    folder = longer(make)
    process = start(folder)
    wait_for_reports(folder, 3)
    process.send_signal(signal.SIGTERM)

    assert process.wait(timeout=300) == driver.INTERRUPTED
    assert {record.state for record in records_of(folder)} <= {"finished", "waiting"}
    assert "RUNNING" not in {run.info.status for run in runs_of(folder)}


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_a_finished_sweep_is_extended_under_the_same_parent(make):
    folder = make()
    assert driver.run(folder) == driver.DONE
    before = records_of(folder)
    config = open_config(folder)
    rewrite(folder, config.with_budget(**extended_budget(before, config, trials=2, hours=None)))

    assert driver.run(folder) == driver.DONE
    after = records_of(folder)
    assert after[:4] == before
    assert [record.state for record in after] == ["finished"] * 6
    parents = [r for r in runs_of(folder) if r.data.tags.get("sweep.role") == "sweep"]
    assert len(parents) == 1
    assert len(runs_of(folder)) == 7
    changed = [event["what"] for event in events_of(folder) if event["event"] == "changed"]
    assert changed == ["sweep.trials: 4 -> 6"]


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_one_finished_trial_is_tuned_on_in_its_own_run(make):
    folder = make(trials=("trials = 4", "trials = 2"))
    assert driver.run(folder) == driver.DONE
    before = records_of(folder)
    ledger = Ledger.open(folder)
    ledger.tune_further(1, 4)
    ledger.close()

    assert driver.run(folder) == driver.DONE
    after = records_of(folder)
    assert after[0] == before[0]
    assert after[1].outcomes[0].steps == before[1].outcomes[0].steps + 4
    assert after[1].mlflow_run_id == before[1].mlflow_run_id
    assert len(runs_of(folder)) == 3
    run = MlflowClient(database_uri(folder)).get_run(after[1].mlflow_run_id)
    assert run.data.metrics["wer"] == after[1].outcomes[0].wer
    assert run.info.status == "FINISHED"


def test_another_config_than_the_sweep_was_begun_with_is_refused_by_name(make):
    folder = make()
    config = open_config(folder)
    ledger = Ledger.create(folder)
    ledger.set_attribute("config", config.toml())
    ledger.close()
    text = (folder / "sweep.toml").read_text()
    (folder / "sweep.toml").write_text(
        text.replace("lambda_quadratic = 50.0", "lambda_quadratic = 5.0")
    )

    with pytest.raises(ConfigError, match=r"`trial.pruning.l0.lambda_quadratic`.*50.0, but is 5.0"):
        driver.run(folder)


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_failed_trials_are_tried_again_if_asked_for(make):
    folder = make(trials=("trials = 4", "trials = 2"))
    ledger = Ledger.create(folder)
    ledger.add({"pruning.method": "dense"}, {})
    ledger.start(0)
    ledger.fail(0, "the machine was too small")
    ledger.close()

    assert driver.run(folder) == driver.SOME_FAILED
    assert driver.run(folder, should_retry=True) == driver.DONE
    assert [(r.number, r.state) for r in records_of(folder)] == [(0, "finished"), (1, "finished")]


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_trials_beaten_by_too_many_are_stopped_and_stand_on_no_front(make):
    folder = make(
        trials=("trials = 4", "trials = 10"),
        steps=("[trial.tuning]\nsteps = 2", "[trial.tuning]\nsteps = 12"),
        rule=(
            "[trial.corpus]",
            '[early_stopping]\nkind = "pareto"\nkeep = 0.2\n[trial.corpus]',
        ),
    )

    assert driver.run(folder) == driver.DONE
    records = records_of(folder)
    stopped = [r for r in records if r.state == "stopped"]
    assert stopped
    assert records[0].state == "finished", "the control is never stopped"
    assert all(not r.outcomes and r.steps < r.total_steps and r.error for r in stopped)
    ended = {
        r.data.tags["sweep.trial"]: r.info.status
        for r in runs_of(folder)[:-1]
        if "sweep.trial" in r.data.tags
    }
    assert {ended[str(r.number)] for r in stopped} == {"KILLED"}
    on_front = {row["trial"] for row in trial_rows(load_snapshot(folder)) if row["on_front"]}
    assert on_front.isdisjoint(r.number for r in stopped)
    assert driver.run(folder) == driver.DONE, "what was stopped stays so"
    assert records_of(folder) == records


@pytest.mark.long
def test_a_word_in_the_directory_ends_a_sweep_in_order(make):
    folder = longer(make)
    process = start(folder)
    wait_for_reports(folder, 3)
    request_stop(folder)

    assert process.wait(timeout=300) == driver.INTERRUPTED
    assert {record.state for record in records_of(folder)} <= {"finished", "waiting"}


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_front_points_are_confirmed_with_fresh_seeds(make):
    folder = make(trials=("trials = 4", "trials = 2"))
    assert driver.run(folder) == driver.DONE
    front = load_snapshot(folder).front
    confirm_folder = plan(load_snapshot(folder), seeds=2)

    assert driver.run(confirm_folder) == driver.DONE
    ledger = Ledger.open(confirm_folder)
    records = summarize_confirmations(front, ledger.records(), confirmations(ledger))
    ledger.close()
    assert [record.trial for record in records] == [point.trial for point in front]
    assert {record.seeds for record in records} == {2}
    assert [r.params["seed"] for r in records_of(confirm_folder)] == [1, 2] * len(front)
    plan(load_snapshot(folder), seeds=2)
    assert len(records_of(confirm_folder)) == 2 * len(front), "what is there is not planned again"
