"""Real MLflow on SQLite: runs that are found again, and what they show."""

import base64
import json
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from made_outcomes import make_outcome, make_records

from core.report import Report
from sweep.ledger.records import TrialRecord
from sweep.report.front_files import write_front
from sweep.tracking import mlflow_view
from sweep.tracking.mlflow_server import TrackingError
from sweep.tracking.tracker import Tracker

WAITING = TrialRecord(number=3, state="running", params={"pruning.target_sparsity": 0.5})
DONE = replace(WAITING, state="finished", outcomes=(make_outcome(0.05, 1.5),), seconds=60.0)


def report(step, **others):
    return Report(stage="search", step=step, total_steps=700, wer=1 / (1 + step), **others)


def runs(tracker):
    return list(tracker.runs.search(""))


def steps(tracker, run_id, key="val/wer"):
    return [metric.step for metric in tracker.client.get_metric_history(run_id, key)]


def test_a_trial_has_one_run_however_often_the_sweep_is_opened(opened):
    for _ in range(3):
        tracker = opened()
        for number in range(3):
            tracker.open_trial(replace(WAITING, number=number))

    parent, *children = runs(tracker)
    assert parent.info.run_id == tracker.parent
    assert [child.data.tags["sweep.trial"] for child in children] == ["0", "1", "2"]
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {tracker.parent}
    assert {child.info.status for child in children} == {"RUNNING"}


def test_the_run_that_the_ledger_remembers_is_taken_up(opened):
    run_id = opened().open_trial(WAITING)
    tracker = opened()
    tracker._trials.states.clear()

    assert tracker.open_trial(replace(WAITING, mlflow_run_id=run_id)) == run_id


def test_a_run_that_mlflow_lost_is_made_anew(opened):
    again = opened().open_trial(replace(WAITING, mlflow_run_id="0" * 32))

    assert again not in (None, "0" * 32)


def test_params_are_logged_once_and_never_changed(opened):
    run_id = opened().open_trial(WAITING)
    tracker = opened()

    tracker.open_trial(replace(WAITING, params={"pruning.target_sparsity": 0.9, "new (one)": 1}))

    params = tracker.client.get_run(run_id).data.params
    assert params == {"pruning.target_sparsity": "0.5", "new _one_": "1"}


def test_a_resumed_trial_repeats_no_step(opened):
    tracker = opened()
    tracker.open_trial(WAITING)
    tracker.log_reports(3, [report(100), report(200), report(300)])
    tracker = opened()
    run_id = tracker.open_trial(WAITING)

    tracker.log_reports(3, [report(200), report(300)])
    tracker.log_reports(3, [report(400)])

    assert steps(tracker, run_id) == [100, 200, 300, 400]


def test_two_stages_may_report_at_one_step(opened):
    tracker = opened()
    run_id = tracker.open_trial(WAITING)

    tracker.log_reports(3, [report(100), replace(report(100), stage="tune", wer=0.5)])

    assert steps(tracker, run_id) == [100, 100]


def test_a_report_becomes_curves(opened):
    tracker = opened()
    run_id = tracker.open_trial(WAITING)
    losses = {"ctc": 2.0, "λ (linear)": 0.5}

    tracker.log_reports(3, [report(99, gflops=1.5, expected_sparsity=0.2, losses=losses)])

    metrics = tracker.client.get_run(run_id).data.metrics
    assert metrics["val/wer"] == 0.01
    assert metrics["val/gflops"] == 1.5
    assert metrics["search/expected_sparsity"] == 0.2
    assert metrics["losses/ctc"] == 2.0
    assert metrics["losses/λ _linear_"] == 0.5
    assert "wer" not in metrics


def test_the_teacher_reports_to_the_sweep_s_own_run(opened):
    tracker = opened()

    tracker.log_reports(None, [replace(report(100), stage="teacher")])

    assert steps(tracker, tracker.parent) == [100]


def test_a_teacher_of_few_steps_is_logged_after_its_speech(opened):
    tracker = opened()
    tracker.log_reports(
        None, [Report(stage="speech", step=step, total_steps=4) for step in (1, 2, 3, 4)]
    )
    tracker.log_reports(None, [replace(report(2), stage="teacher")])

    assert steps(tracker, tracker.parent) == [2]


@pytest.mark.parametrize(
    ("record", "status"),
    [
        (DONE, "FINISHED"),
        (replace(WAITING, state="stopped"), "KILLED"),
        (replace(WAITING, state="failed", error="loss is not finite"), "FAILED"),
    ],
)
def test_a_trial_ends_as_its_record_says(opened, record, status):
    tracker = opened()
    run_id = tracker.open_trial(WAITING)

    tracker.finish_trial(record)

    run = tracker.client.get_run(run_id)
    assert run.info.status == status
    assert run.data.tags["state"] == record.state
    assert run.data.tags["reason"] == (record.error or "")
    assert ("wer" in run.data.metrics) == (record.state == "finished")


def test_the_outcome_is_logged_once_and_whole(opened):
    tracker = opened()
    run_id = tracker.open_trial(WAITING)

    tracker.finish_trial(DONE)
    tracker.finish_trial(DONE)
    opened().finish_trial(DONE)

    metrics = tracker.client.get_run(run_id).data.metrics
    outcome = DONE.outcomes[0]
    for name in ("wer", "wer_low", "wer_high", "gflops", "params", "latency_ms"):
        assert metrics[name] == getattr(outcome, name)
        assert len(tracker.client.get_metric_history(run_id, name)) == 1
    assert metrics["realised_sparsity"] == outcome.realised_sparsity


def test_a_curve_has_a_table_of_all_its_outcomes(opened, tmp_path):
    tracker = opened()
    outcomes = (make_outcome(0.05, 1.5), make_outcome(0.1, 1.0))

    tracker.finish_trial(replace(DONE, outcomes=outcomes))

    run_id = tracker.run_id(DONE.number)
    file = tracker.client.download_artifacts(run_id, "outcomes.csv", str(tmp_path))
    assert len(Path(file).read_text("utf-8").splitlines()) == 3
    assert tracker.client.get_run(run_id).data.metrics["gflops"] == 1.5


def test_what_a_killed_driver_left_open_is_ended(opened):
    tracker = opened()
    for number in range(3):
        tracker.open_trial(replace(WAITING, number=number))
    records = [
        replace(DONE, number=0),
        replace(WAITING, number=1, state="failed", error="died"),
        replace(WAITING, number=2, state="waiting"),
        replace(DONE, number=3),  # MLflow was away for all of its life
        replace(WAITING, number=4, state="waiting"),
    ]

    tracker = opened()
    tracker.reconcile(records)

    _, *children = runs(tracker)
    assert [c.info.status for c in children] == ["FINISHED", "FAILED", "SCHEDULED", "FINISHED"]


def test_reconciling_again_changes_nothing(opened):
    tracker = opened()
    tracker.finish_trial(DONE)
    before = [(r.info.end_time, r.info.status, r.data.metrics) for r in runs(tracker)[1:]]

    tracker = opened()
    tracker.reconcile([DONE])

    assert [(r.info.end_time, r.info.status, r.data.metrics) for r in runs(tracker)[1:]] == before


def test_an_interrupted_sweep_leaves_nothing_running(opened):
    tracker = opened()
    tracker.open_trial(WAITING)
    tracker.finish_trial(replace(DONE, number=0))

    tracker.close(is_interrupted=True)

    assert [run.info.status for run in runs(tracker)] == ["SCHEDULED", "SCHEDULED", "FINISHED"]
    again = opened()
    again.open_trial(WAITING)
    assert [run.info.status for run in runs(again)][:2] == ["RUNNING", "RUNNING"]


def test_a_complete_sweep_is_finished(opened):
    tracker = opened()

    tracker.close()

    assert runs(tracker)[0].info.status == "FINISHED"


def test_the_front_lies_on_the_sweep_s_run(opened, folder):
    tracker = opened()
    records = make_records(200)
    files = write_front(records, folder / "front", title="demo")

    tracker.log_front(files, records)
    tracker.log_front(files, records)

    artifacts = tracker.client.list_artifacts(tracker.parent, "front")
    names = ["front.csv", "front.html", "front.md", "front.png", "front.svg"]
    assert [Path(file.path).name for file in artifacts] == names
    run = tracker.client.get_run(tracker.parent)
    assert "| trial | method |" in run.data.tags["mlflow.note.content"]
    assert run.data.metrics["front/finished"] == 200
    assert steps(tracker, tracker.parent, "front/hypervolume") == [200]


def test_the_installed_view_shows_the_trials_of_this_sweep_as_points(opened):
    tracker = opened()

    tracker.install_view()
    tracker.install_view()

    tags = tracker.client.get_experiment(tracker.experiment).tags
    (name,) = [name for name in tags if name.startswith(mlflow_view.TAG)]
    assert f"viewStateShareKey={name.removeprefix(mlflow_view.TAG)}&" in tracker.link(
        "http://host/"
    )
    packed = json.loads(tags[name])["state"].removeprefix("deflate;")
    state = json.loads(zlib.decompress(base64.b64decode(packed)))
    assert tracker.parent in state["searchFilter"]
    first = state["compareRunCharts"][0]
    assert (first["type"], first["xaxis"]["key"], first["yaxis"]["key"]) == (
        "SCATTER",
        "gflops",
        "wer",
    )


def test_links_are_known_without_opening_the_sweep(opened, folder):
    tracker = opened()

    later = Tracker(folder, "demo")

    assert later.link("http://host:1") == tracker.link("http://host:1/")
    assert later.front_link("http://host:1") == tracker.front_link("http://host:1/")


def test_artifacts_lie_in_the_sweep_s_folder(opened, folder):
    tracker = opened()

    assert list((folder / "mlartifacts" / tracker.parent).rglob("sweep.toml"))


def test_mlflow_is_silent(opened, capfd):
    tracker = opened()
    tracker.open_trial(WAITING)
    tracker.finish_trial(DONE)
    tracker.close()

    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "nonsense://here"])
def test_an_mlflow_that_cannot_be_reached_stops_the_sweep_at_once(tmp_path, uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    with pytest.raises(TrackingError, match=rf"MLflow at `{uri}` cannot be opened: .+"):
        Tracker(tmp_path, "demo", uri).open_sweep("", {})


def test_a_folder_that_cannot_be_written_stops_the_sweep_at_once():
    with pytest.raises(TrackingError, match=r"/proc/nowhere/mlflow.db` cannot be opened: .+"):
        Tracker(Path("/proc/nowhere"), "demo")


def test_a_deleted_experiment_of_others_is_named(folder):
    tracker = Tracker(folder, "demo")
    tracker.client.delete_experiment(tracker.experiment)

    with pytest.raises(TrackingError, match=r"experiment `demo` must be active, but is deleted"):
        Tracker(folder, "demo")
