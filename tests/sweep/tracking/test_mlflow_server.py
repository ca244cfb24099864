"""A real MLflow server that requires authentication, and passwords, which are never shown."""

import os
from dataclasses import replace

import pytest
from made_outcomes import make_records

from sweep.report.front_files import write_front
from sweep.tracking.mlflow_server import TrackingError, tracking_error

USER, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
SECRET = "correct horse battery"  # noqa: S105  (of a server of our own)


@pytest.fixture
def asking(server, tmp_path):
    """A server with basic authentication, and its administrator's password."""
    pytest.importorskip("flask_wtf", reason="needs mlflow[auth]")
    config = tmp_path / "auth.ini"
    config.write_text(
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = sqlite:///{tmp_path / 'users.db'}\n"
        f"admin_username = admin\nadmin_password = {SECRET}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    return server(
        None,
        *("--app-name", "basic-auth"),
        MLFLOW_AUTH_CONFIG_PATH=str(config),
        MLFLOW_FLASK_SERVER_SECRET_KEY=SECRET,
    )


@pytest.mark.long
@pytest.mark.slow
def test_a_server_that_requires_authentication_accepts_its_users_and_nobody_else(
    asking, opened, monkeypatch, folder, caplog
):
    base = asking.start()
    records = make_records(3)

    for name, password, reason in (
        ("", "", "they are not set"),
        ("admin", "wrong", "it does not accept those"),
        ("nobody", SECRET, "it does not accept those"),
    ):
        monkeypatch.setenv(USER, name)
        monkeypatch.setenv(PASSWORD, password)
        message = rf"`{base}` requires authentication.*{reason}"
        with pytest.raises(TrackingError, match=message) as caught:
            opened(base)
        assert str(caught.value).count("\n") == 0

    monkeypatch.setenv(USER, "admin")
    monkeypatch.setenv(PASSWORD, SECRET)
    tracker = opened(base)
    for record in records:
        tracker.open_trial(replace(record, state="running", outcomes=()))
        tracker.finish_trial(record)
    monkeypatch.setenv(PASSWORD, "changed meanwhile")
    tracker.log_front(write_front(records, folder / "front", title="demo"), records)
    assert tracker.is_unreachable
    monkeypatch.setenv(PASSWORD, SECRET)
    tracker.close()

    assert {run.info.status for run in tracker.runs.search("")} == {"FINISHED"}
    assert len(tracker.client.list_artifacts(tracker.parent, "front")) == 5
    assert SECRET not in caplog.text


def test_no_error_shows_a_password(monkeypatch):
    monkeypatch.setenv(PASSWORD, SECRET)
    uri = "postgresql://me:hush@host/mlflow"

    message = str(tracking_error(uri, OSError(f"cannot connect to {uri} now")))

    assert "hush" not in message
    assert "postgresql://me:***@host/mlflow" in message
    assert os.environ[PASSWORD] not in message
