"""Real MLflow: on SQLite, and once behind a server."""

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from core.report import Report
from sweep import mlflow_view, tracking
from sweep.figures import write_front
from sweep.records import TrialRecord
from sweep.testing import made_outcome, made_records
from sweep.tracking import Tracker, TrackingError

WAITING = TrialRecord(number=3, state="running", params={"pruning.target_sparsity": 0.5})
DONE = replace(WAITING, state="finished", outcomes=(made_outcome(0.05, 1.5),), seconds=60.0)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """MLflow takes seconds to make its tables; here once for all tests."""
    folder = tmp_path_factory.mktemp("mlflow")
    Tracker(folder, "template").client.search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def folder(tmp_path, empty_database):
    # Letters that a path may have and an address may not.
    folder = tmp_path / "a swéep #1"
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    return folder


def opened(folder):
    tracker = Tracker(folder, "demo")
    tracker.open_sweep("[sweep]\n", {"trials": 4})
    return tracker


def report(step, **others):
    return Report(stage="search", step=step, total_steps=700, wer=1 / (1 + step), **others)


def runs(tracker):
    return list(tracker._search(""))


def steps(tracker, run_id, key="val/wer"):
    return [metric.step for metric in tracker.client.get_metric_history(run_id, key)]


def test_a_trial_has_one_run_however_often_the_sweep_is_opened(folder):
    for _ in range(3):
        tracker = opened(folder)
        for number in range(3):
            tracker.open_trial(replace(WAITING, number=number))

    parent, *children = runs(tracker)
    assert parent.info.run_id == tracker.parent
    assert [child.data.tags["sweep.trial"] for child in children] == ["0", "1", "2"]
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {tracker.parent}
    assert {child.info.status for child in children} == {"RUNNING"}


def test_the_run_that_the_ledger_remembers_is_taken_up(folder):
    run_id = opened(folder).open_trial(WAITING)
    tracker = opened(folder)
    tracker._trials.clear()

    assert tracker.open_trial(replace(WAITING, mlflow_run_id=run_id)) == run_id


def test_a_run_that_mlflow_lost_is_made_anew(folder):
    tracker = opened(folder)
    run_id = tracker.open_trial(WAITING)
    tracker.client.delete_run(run_id)

    for lost in (run_id, "0" * 32):
        again = opened(folder).open_trial(replace(WAITING, mlflow_run_id=lost))
        assert again not in (None, lost)


def test_params_are_logged_once_and_never_changed(folder):
    run_id = opened(folder).open_trial(WAITING)
    tracker = opened(folder)

    tracker.open_trial(replace(WAITING, params={"pruning.target_sparsity": 0.9, "new (one)": 1}))

    params = tracker.client.get_run(run_id).data.params
    assert params == {"pruning.target_sparsity": "0.5", "new _one_": "1"}


def test_a_resumed_trial_repeats_no_step(folder):
    tracker = opened(folder)
    tracker.log_reports(tracker.open_trial(WAITING), [report(100), report(200), report(300)])
    tracker = opened(folder)
    run_id = tracker.open_trial(WAITING)

    tracker.log_reports(run_id, [report(200), report(300)])
    tracker.log_reports(run_id, [report(400)])

    assert steps(tracker, run_id) == [100, 200, 300, 400]


def test_two_stages_may_report_at_one_step(folder):
    tracker = opened(folder)
    run_id = tracker.open_trial(WAITING)

    tracker.log_reports(run_id, [report(100), replace(report(100), stage="tune", wer=0.5)])

    assert steps(tracker, run_id) == [100, 100]


def test_a_report_becomes_curves(folder):
    tracker = opened(folder)
    run_id = tracker.open_trial(WAITING)
    losses = {"ctc": 2.0, "λ (linear)": 0.5}

    tracker.log_reports(run_id, [report(99, gflops=1.5, expected_sparsity=0.2, losses=losses)])

    metrics = tracker.client.get_run(run_id).data.metrics
    assert metrics["val/wer"] == 0.01
    assert metrics["val/gflops"] == 1.5
    assert metrics["search/expected_sparsity"] == 0.2
    assert metrics["losses/ctc"] == 2.0
    assert metrics["losses/λ _linear_"] == 0.5
    assert "wer" not in metrics


def test_the_teacher_reports_to_the_sweep_s_own_run(folder):
    tracker = opened(folder)

    tracker.log_reports(tracker.parent, [replace(report(100), stage="teacher")])

    assert steps(tracker, tracker.parent) == [100]


@pytest.mark.parametrize(
    ("record", "status"),
    [
        (DONE, "FINISHED"),
        (replace(WAITING, state="stopped"), "KILLED"),
        (replace(WAITING, state="failed", error="loss is not finite"), "FAILED"),
    ],
)
def test_a_trial_ends_as_its_record_says(folder, record, status):
    tracker = opened(folder)
    run_id = tracker.open_trial(WAITING)

    tracker.finish_trial(record)

    run = tracker.client.get_run(run_id)
    assert run.info.status == status
    assert run.data.tags["state"] == record.state
    assert run.data.tags["reason"] == (record.error or "")
    assert ("wer" in run.data.metrics) == (record.state == "finished")


def test_the_outcome_is_logged_once_and_whole(folder):
    tracker = opened(folder)
    run_id = tracker.open_trial(WAITING)

    tracker.finish_trial(DONE)
    tracker.finish_trial(DONE)
    opened(folder).finish_trial(DONE)

    metrics = tracker.client.get_run(run_id).data.metrics
    outcome = DONE.outcomes[0]
    for name in ("wer", "wer_low", "wer_high", "gflops", "params", "latency_ms"):
        assert metrics[name] == getattr(outcome, name)
        assert len(tracker.client.get_metric_history(run_id, name)) == 1
    assert metrics["realised_sparsity"] == outcome.realised_sparsity


def test_a_curve_has_a_table_of_all_its_outcomes(folder, tmp_path):
    tracker = opened(folder)
    outcomes = (made_outcome(0.05, 1.5), made_outcome(0.1, 1.0))

    tracker.finish_trial(replace(DONE, outcomes=outcomes))

    run_id = tracker._trials[DONE.number].run_id
    file = tracker.client.download_artifacts(run_id, "outcomes.csv", str(tmp_path))
    assert len(Path(file).read_text("utf-8").splitlines()) == 3
    assert tracker.client.get_run(run_id).data.metrics["gflops"] == 1.5


def test_what_a_killed_driver_left_open_is_ended(folder):
    tracker = opened(folder)
    for number in range(3):
        tracker.open_trial(replace(WAITING, number=number))
    records = [
        replace(DONE, number=0),
        replace(WAITING, number=1, state="failed", error="died"),
        replace(WAITING, number=2, state="waiting"),
        replace(DONE, number=3),  # MLflow was away for all of its life
        replace(WAITING, number=4, state="waiting"),
    ]

    tracker = opened(folder)
    tracker.reconcile(records)

    _, *children = runs(tracker)
    assert [c.info.status for c in children] == ["FINISHED", "FAILED", "SCHEDULED", "FINISHED"]


def test_reconciling_again_changes_nothing(folder):
    tracker = opened(folder)
    tracker.finish_trial(DONE)
    before = [(r.info.end_time, r.info.status, r.data.metrics) for r in runs(tracker)[1:]]

    tracker = opened(folder)
    tracker.reconcile([DONE])

    assert [(r.info.end_time, r.info.status, r.data.metrics) for r in runs(tracker)[1:]] == before


def test_an_interrupted_sweep_leaves_nothing_running(folder):
    tracker = opened(folder)
    tracker.open_trial(WAITING)
    tracker.finish_trial(replace(DONE, number=0))

    tracker.close(is_interrupted=True)

    assert [run.info.status for run in runs(tracker)] == ["SCHEDULED", "SCHEDULED", "FINISHED"]
    again = opened(folder)
    again.open_trial(WAITING)
    assert [run.info.status for run in runs(again)][:2] == ["RUNNING", "RUNNING"]


def test_a_complete_sweep_is_finished(folder):
    tracker = opened(folder)

    tracker.close()

    assert runs(tracker)[0].info.status == "FINISHED"


def test_the_front_lies_on_the_sweep_s_run(folder):
    tracker = opened(folder)
    records = made_records(200)
    files = write_front(records, folder / "front", title="demo")

    tracker.log_front(files, records)
    tracker.log_front(files, records)

    found = tracker.client.list_artifacts(tracker.parent, "front")
    names = ["front.csv", "front.html", "front.md", "front.png", "front.svg"]
    assert [Path(file.path).name for file in found] == names
    run = tracker.client.get_run(tracker.parent)
    assert "| trial | method |" in run.data.tags["mlflow.note.content"]
    assert run.data.metrics["front/finished"] == 200
    assert steps(tracker, tracker.parent, "front/hypervolume") == [200]


def test_a_note_too_long_for_mlflow_ends_with_a_whole_line():
    table = "\n".join(f"| {number} | l0 | 0.123 |" for number in range(2000))

    *rows, empty, last = mlflow_view.note(table).splitlines()

    assert len(mlflow_view.note(table)) <= mlflow_view.MAX_NOTE
    assert all(row.endswith("|") for row in rows)
    assert not empty
    assert "front/front.csv" in last


def test_the_installed_view_shows_the_trials_of_this_sweep_as_points(folder):
    tracker = opened(folder)

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


def test_links_are_known_without_opening_the_sweep(folder):
    tracker = opened(folder)

    later = Tracker(folder, "demo")

    assert later.link("http://host:1") == tracker.link("http://host:1/")
    assert later.front_link("http://host:1") == tracker.front_link("http://host:1/")


def test_artifacts_lie_in_the_sweep_s_folder(folder):
    tracker = opened(folder)

    assert list((folder / "mlartifacts" / tracker.parent).rglob("sweep.toml"))


def test_mlflow_is_silent(folder, capfd):
    tracker = opened(folder)
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


def test_a_deleted_experiment_is_named(folder):
    tracker = opened(folder)
    tracker.client.delete_experiment(tracker.experiment)

    with pytest.raises(TrackingError, match=r"experiment `demo` must be active, but is deleted"):
        Tracker(folder, "demo")


@pytest.fixture
def server(folder, tmp_path):
    """`conformer-sweep ui`'s own MLflow server; called, it starts (again)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = f"http://127.0.0.1:{port}"
    started = []

    def start():
        with (tmp_path / "server.log").open("ab") as log:
            started.append(
                subprocess.Popen(  # noqa: S603  (our own command)
                    tracking.ui_command(folder, port),
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    cwd=tmp_path,  # where the server keeps what is uploaded to it
                )
            )
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{base}/health", timeout=1).close()  # noqa: S310
            except OSError:
                time.sleep(0.25)
            else:
                return base
        raise AssertionError((tmp_path / "server.log").read_text())

    def stop():
        process = started.pop()
        os.killpg(process.pid, 15)
        process.wait(30)

    start.stop = stop
    yield start
    while started:
        stop()


@pytest.mark.slow
def test_a_server_that_goes_away_costs_records_but_never_the_sweep(
    server, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.0)
    tracker = Tracker(tmp_path / "sweep", "served", server())
    tracker.open_sweep("", {})
    run_id = tracker.open_trial(WAITING)

    server.stop()
    tracker.log_reports(run_id, [report(100)])
    tracker.finish_trial(DONE)
    assert tracker.open_trial(replace(WAITING, number=4)) is None
    server()
    tracker.reconcile([DONE])
    tracker.close()

    assert sum("MLflow failed" in message for message in caplog.messages) == 1
    assert [run.info.status for run in runs(tracker)] == ["FINISHED", "FINISHED"]


@pytest.mark.slow
def test_the_link_lands_on_the_scatter_and_the_front_opens_offline(folder, server, browse):
    records = made_records(8)
    tracker = opened(folder)
    tracker.install_view()
    for record in records:
        tracker.open_trial(replace(record, state="running", outcomes=()))
        tracker.finish_trial(record)
    tracker.log_front(write_front(records, folder / "front", title="demo"), records)
    tracker.close()
    base = server()

    scatter = browse(tracker.link(base), seconds=60)
    artifacts = browse(tracker.front_link(base), seconds=60)

    for words in ("gflops vs. wer", "Pareto front", "trial 7"):
        assert words in scatter
    assert "front.html" in artifacts
    assert "front.svg" in artifacts
