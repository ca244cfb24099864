import hashlib
import json
import os
import subprocess
import sys

import pytest

from sweep.storage import object_store
from sweep.storage.checkpoints import SHARED, fetch_shared
from sweep.storage.object_store import (
    RefusedError,
    Remote,
    StoreError,
    local_path,
    retry_while_away,
)


@pytest.fixture
def store(address):
    return Remote(address)


def test_what_is_written_is_read_again(store):
    assert store.read("a/b") is None
    store.write("a/b", b"1")

    assert store.read("a/b").data == b"1"
    assert list(store.under("a")) == ["a/b"]
    assert store.under("c") == {}


def test_who_comes_first_has_it(store):
    first = store.replace("lease", b"1", None)

    assert first.data == b"1"
    assert store.replace("lease", b"2", None) is None
    second = store.replace("lease", b"2", first.version)
    assert second.data == b"2"
    assert store.replace("lease", b"3", first.version) is None
    assert store.read("lease").data == b"2"


def test_what_lies_at_the_address_is_told_from_what_lies_below(store):
    assert store.list_root() == ({}, [])
    for key in ("one", "two", "below/three", "below/deeper/four"):
        store.write(key, b"1")

    files, folders = store.list_root()
    assert (sorted(files), folders) == (["one", "two"], ["below"])


def test_a_file_arrives_whole_or_not_at_all(store, tmp_path):
    store.write("a", b"1")

    with pytest.raises(StoreError, match="must match its checksum"):
        store.download("a", tmp_path / "a", sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []
    store.download("a", tmp_path / "below" / "a")
    assert (tmp_path / "below" / "a").read_bytes() == b"1"


def test_what_is_deleted_is_gone_and_what_was_never_there_is_no_fault(store):
    store.write("a", b"1")
    store.delete("a", "b")

    assert store.read("a") is None


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("file:///tmp/x", "must be an object store's"),
        ("memory://x", "must be an object store's"),
        ("s3://", "must be an object store's"),
        ("nothing://x/y", "must be that of a supported store"),
    ],
)
def test_an_address_that_no_store_has_is_refused(address, message):
    with pytest.raises(StoreError, match=message):
        Remote(address)


def test_a_store_that_is_away_is_named_in_one_line(address):
    away = Remote(address.replace("sweeps-", "nowhere-"))

    with pytest.raises(StoreError, match=r"`s3://nowhere-.*/x` must be reachable, but: .*bucket"):
        away.write("x", b"1")


def test_who_has_no_right_is_told_at_once(store_server, tmp_path):
    code = """
from sweep.storage.object_store import RefusedError, Remote, StoreError
from sweep.storage.object_store import local_path, retry_while_away
from sweep.storage.checkpoints import SHARED, fetch_shared
try:
    retry_while_away(lambda: Remote("s3://bucket/x").read("a"), seconds=600)
except StoreError as error:
    print(error)
"""
    environment = {name: value for name, value in os.environ.items() if "AWS" not in name}
    environment |= {"AWS_ENDPOINT_URL": store_server, "AWS_EC2_METADATA_DISABLED": "true"}
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-P", "-c", code],
        env=environment | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )

    assert "must be reachable, but: " in done.stdout


def test_a_store_that_cannot_compare_and_set_has_one_winner_too(store, monkeypatch):
    monkeypatch.setattr(object_store, "EXTRAS", {})
    monkeypatch.setattr(object_store, "SETTLED_SECONDS", 0.1)
    first = store.replace("lease", b"1", None)

    assert first.data == b"1"
    assert store.replace("lease", b"2", None) is None
    assert store.replace("lease", b"2", first.version).data == b"2"


def test_patience_ends(monkeypatch):
    tries = []
    monkeypatch.setattr(object_store, "FIRST_PAUSE_SECONDS", 0.01)

    def away():
        tries.append(1)
        raise StoreError("away")

    with pytest.raises(StoreError, match="away"):
        retry_while_away(away, seconds=0.2)
    assert len(tries) > 2
    assert retry_while_away(lambda: 3, seconds=0) == 3


@pytest.mark.parametrize("key", ["../out", "features/../../out", "teacher/model/../../../out"])
def test_an_object_s_name_leads_nowhere_out_of_the_copy(store, tmp_path, key):
    """A bucket may have objects of any name, and others may write there."""
    copy = tmp_path / "copy"
    (copy / ".store").mkdir(parents=True)
    (copy / ".store" / "address").write_text(store.address)
    store.write("generation", b"1")
    store.write(SHARED, json.dumps({key: hashlib.sha256(b"x").hexdigest()}).encode())

    with pytest.raises(RefusedError, match="must be the name of an object inside"):
        fetch_shared(store, copy)
    with pytest.raises(RefusedError, match="must be the name of an object inside"):
        local_path(copy, key)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", [b"", b"[1]", b"\xff", b'{"a": 1}', b"[" * 100_000])
def test_a_note_of_the_store_is_checksums_or_refused(store, tmp_path, text):
    store.write(SHARED, text)

    with pytest.raises(RefusedError, match="must hold checksums"):
        fetch_shared(store, tmp_path / "copy")
