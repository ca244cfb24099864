"""A sweep that somebody packed contacts nobody and writes nowhere else, without one's own word."""

import shutil
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

import pytest

from core.config.base import ConfigError
from sweep.config.sweep import open_config, rewrite
from sweep.identity import identity
from sweep.ledger.ledger import Ledger
from sweep.ledger.records import TrialRecord
from sweep.storage.archive import pack, unpack
from sweep.storage.working_copy import address_of
from sweep.tracking.mlflow_server import PASSWORD, USER
from sweep.tracking.tracker import Tracker


def with_tracking(folder, uri):
    config = open_config(folder)
    tracking = config.tracking.model_copy(update={"uri": uri})
    rewrite(folder, config.model_copy(update={"tracking": tracking}))


def pack_sweep(folder, tmp_path):
    """The sweep as a file that came by mail."""
    pack(folder, tmp_path / "sent.tar.gz")
    return tmp_path / "sent.tar.gz"


def test_a_packed_sweep_s_server_is_not_called_nor_sent_a_password(
    sweep, tmp_path, listener, monkeypatch, guard_effects, run_command
):
    monkeypatch.setenv(USER, "me")
    monkeypatch.setenv(PASSWORD, "secret-word")
    monkeypatch.setenv("PGPASSWORD", "secret-word")
    with_tracking(sweep, listener.url)
    file, new = pack_sweep(sweep, tmp_path), tmp_path / "new"

    with guard_effects(tmp_path):
        code, _, err = run_command("unpack", file, new)
        for words in (("status", new), ("trials", new), ("pareto", new), ("show", new, "0")):
            assert run_command(*words)[0] == 0
    assert code == 0
    assert f"`tracking.uri` was {listener.url} and is empty now" in err
    config = open_config(new)
    with guard_effects(tmp_path):
        tracker = Tracker(new, config.sweep.name, config.tracking.uri)
        tracker.open_sweep(config.toml(), {})
        tracker.close()
    assert listener.calls == []
    assert "secret-word" not in (new / "sweep.toml").read_text()


def test_the_listener_would_have_heard_it(sweep, tmp_path, listener, monkeypatch):
    """The test above can fail: with one's own word the server is called, and told who is there."""
    monkeypatch.setenv(USER, "me")
    monkeypatch.setenv(PASSWORD, "secret-word")
    with_tracking(sweep, listener.url)

    warnings = unpack(pack_sweep(sweep, tmp_path), tmp_path / "new", is_trusted=True)

    config = open_config(tmp_path / "new")
    assert (warnings, config.tracking.uri) == ([], listener.url)
    with pytest.raises(RuntimeError, match="cannot be opened"):
        Tracker(tmp_path / "new", config.sweep.name, config.tracking.uri)
    assert any(b"Authorization: Basic" in call for call in listener.calls)


def test_a_sweep_inside_has_its_server_taken_out_too(sweep, tmp_path, listener):
    inner = sweep / "confirm"
    inner.mkdir()
    rewrite(inner, open_config(sweep))
    Ledger.create(inner).close()
    with_tracking(inner, listener.url)

    warnings = unpack(pack_sweep(sweep, tmp_path), tmp_path / "new")

    assert any(listener.url in line for line in warnings)
    assert open_config(tmp_path / "new" / "confirm").tracking.uri == ""


def test_a_ledger_on_a_server_is_none_in_a_packed_sweep(sweep, tmp_path):
    rewrite(sweep, open_config(sweep).with_budget(ledger="postgresql://me@127.0.0.1:1/x"))

    unpack(pack_sweep(sweep, tmp_path), tmp_path / "new")

    assert open_config(tmp_path / "new").sweep.ledger == "sqlite"


def test_what_belongs_to_a_store_s_copy_is_not_packed(sweep, tmp_path):
    for folder in (sweep, sweep / "confirm"):
        (folder / ".store").mkdir(parents=True)
        (folder / ".store" / "address").write_text("s3://bucket/sweep")
    (sweep / ".store" / "address").unlink()

    unpack(pack_sweep(sweep, tmp_path), tmp_path / "new")

    assert list((tmp_path / "new").rglob("*.store")) == []
    assert address_of(tmp_path / "new" / "confirm") is None


def test_files_outside_are_named(sweep, tmp_path):
    config = open_config(sweep)
    values = config.trial | {"corpus": {"name": str(tmp_path)}}
    rewrite(sweep, config.model_copy(update={"trial": values}))

    warnings = unpack(pack_sweep(sweep, tmp_path), tmp_path / "new")

    assert any("`trial.corpus.name`" in line and str(tmp_path) in line for line in warnings)


def test_a_packed_sweep_lets_no_manifest_name_programs(sweep, tmp_path):
    text = (sweep / "sweep.toml").read_text()
    changed = text.replace("[trial.corpus]\n", '[trial.corpus]\nallow = ["commands"]\n')
    changed = changed.replace("allow = []\n", "")
    assert changed.count("allow = ") == 1
    file = tmp_path / "sent.tar.gz"
    (sweep / "sweep.toml").write_text(changed)
    with tarfile.open(file, "w:gz") as archive:
        for path in sorted(sweep.iterdir()):
            archive.add(path, arcname=path.name)

    with pytest.raises(ConfigError, match="allow"):
        unpack(file, tmp_path / "new")
    assert not (tmp_path / "new").exists()


# ---- MLflow's database ----


@pytest.fixture(scope="module")
def made_tracked(made_sweep, tmp_path_factory):
    """The sweep with its run in a database of its own; not to be changed."""
    folder = tmp_path_factory.mktemp("tracked") / "sweep"
    shutil.copytree(made_sweep, folder)
    tracker = Tracker(folder, "tiny")
    tracker.open_sweep("[sweep]", {})
    tracker.open_trial(TrialRecord(number=0, state="running"))
    tracker.close()
    return folder


@pytest.fixture
def track(made_tracked, tmp_path):
    return Path(shutil.copytree(made_tracked, tmp_path / "sweep"))


def test_a_sweep_s_own_database_is_unpacked_as_it_is(track, tmp_path):
    assert unpack(pack_sweep(track, tmp_path), tmp_path / "new") == []

    assert (tmp_path / "new/mlflow.db").read_bytes() == (track / "mlflow.db").read_bytes()


FOREIGN = {
    "a run's artifacts elsewhere": "UPDATE runs SET artifact_uri = 'file:///tmp/elsewhere'",
    "a run's artifacts above": "UPDATE runs SET artifact_uri = artifact_uri || '/../../../..'",
    "the same, in code": "UPDATE runs SET artifact_uri = artifact_uri || '/%2e%2e/x'",
    "a server's artifacts": "UPDATE experiments SET artifact_location = 'http://127.0.0.1:1/a'"
    " WHERE experiment_id > 0",
    "a bucket's artifacts": "UPDATE experiments SET artifact_location = 's3://b/mlartifacts'"
    " WHERE experiment_id > 0",
    "a trigger": "CREATE TRIGGER x AFTER INSERT ON runs BEGIN"
    " UPDATE runs SET artifact_uri = 'file:///tmp/elsewhere'; END",
    "a view": "CREATE VIEW x AS SELECT 1",
    "a webhook": "INSERT INTO webhooks (webhook_id, name, url, status, creation_timestamp,"
    " last_updated_timestamp) VALUES ('w', 'w', 'http://127.0.0.1:1', 'ACTIVE', 0, 0)",
    "a table of its own": "CREATE TABLE mine (x); INSERT INTO mine VALUES (1)",
    "no database": None,
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_database_that_leads_elsewhere_is_refused(track, tmp_path, guard_effects, kind):
    if FOREIGN[kind] is None:
        (track / "mlflow.db").write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    else:
        with closing(sqlite3.connect(track / "mlflow.db")) as database, database:
            columns = {name for _, name, *_ in database.execute("PRAGMA table_info(webhooks)")}
            query = FOREIGN[kind]
            if kind == "a webhook" and "workspace" in columns:
                query = query.replace("(webhook_id", "(workspace, webhook_id")
                query = query.replace("('w'", "('default', 'w'", 1)
            database.executescript(query)
    file = tmp_path / "sent.tar.gz"
    with tarfile.open(file, "w:gz") as archive:  # as a stranger would pack it
        for path in sorted(track.iterdir()):
            archive.add(path, arcname=path.name)

    with guard_effects(tmp_path), pytest.raises(ConfigError, match=r"its mlflow.db: .*--trust"):
        unpack(file, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("text", ["", "x", "../../x", "a' OR 1=1 --", "g" * 32, "0" * 5000])
def test_a_sweep_s_id_is_what_we_drew_or_refused(sweep, text):
    (sweep / "sweep.id").write_text(text)

    with pytest.raises(ValueError, match=r"sweep.id` must"):
        identity(sweep)
