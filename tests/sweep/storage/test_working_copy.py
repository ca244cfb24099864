import json
import shutil
import threading

import pytest
from made_outcomes import make_outcome

from sweep.config.distributions import Range
from sweep.config.sweep import create, load
from sweep.ledger.ledger import Ledger
from sweep.local_lock import LockedError
from sweep.search.confirm import plan
from sweep.snapshot import load_snapshot, model_path
from sweep.storage import sync
from sweep.storage.addresses import address_of, display_name
from sweep.storage.archive import pack, unpack
from sweep.storage.lock import driver_pid, is_stop_requested, request_stop, sweep_lock
from sweep.storage.object_store import Remote
from sweep.storage.sync import UnsentError
from sweep.storage.working_copy import GENERATION, Sender, SyncState, refresh, resolve_folder

LEAVES = {"pruning.target_sparsity": Range(low=0.2, high=0.8)}


@pytest.fixture
def store(address):
    return Remote(address)


@pytest.fixture
def machine(tmp_path, monkeypatch, address):
    """The working copy of the sweep on a machine of that name."""

    def copy(name):
        monkeypatch.setenv("CONFORMER_SWEEP_SCRATCH", str(tmp_path / name))
        return resolve_folder(address)

    return copy


@pytest.fixture
def sweep(machine, tiny_space):
    """A sweep with one trial, begun on the first machine, and kept."""
    folder = machine("first")
    create(folder, load(str(tiny_space)), tiny_space.read_text())
    with sweep_lock(folder):
        add_trial(folder)
    return folder


def add_trial(folder):
    ledger = Ledger.open_or_create(folder, ["wer", "gflops"])
    record = ledger.add({"pruning.target_sparsity": 0.5}, LEAVES)
    ledger.start(record.number)
    ledger.finish(record.number, [make_outcome()])
    ledger.close()


def num_trials(folder):
    return len(load_snapshot(folder).records)


def test_a_path_is_itself(tmp_path):
    assert resolve_folder(str(tmp_path)) == tmp_path
    assert address_of(tmp_path) is None
    assert display_name(tmp_path) == str(tmp_path)


def test_each_address_has_one_copy(machine, address):
    assert machine("first") == resolve_folder(f"{address}/")
    assert resolve_folder(f"{address}2") != machine("first")
    assert display_name(machine("first")) == address


def test_what_one_machine_leaves_another_goes_on_with(sweep, machine):
    second = machine("second")

    assert second != sweep
    assert load_snapshot(second).records == load_snapshot(sweep).records
    with sweep_lock(second):
        add_trial(second)
    assert num_trials(sweep) == 2


def test_a_copy_whose_driver_was_killed_is_newer_than_the_store(sweep, machine, store):
    add_trial(sweep)  # and nothing was sent

    assert num_trials(machine("first")) == 2
    assert num_trials(machine("second")) == 1
    with sweep_lock(sweep):
        pass
    assert num_trials(machine("second")) == 2
    assert store.read(GENERATION) is not None


def test_who_went_on_elsewhere_is_newer_than_an_old_copy(sweep, machine):
    add_trial(sweep)
    add_trial(sweep)  # lost: nobody sent them, and another machine went on
    second = machine("second")
    with sweep_lock(second):
        add_trial(second)

    with sweep_lock(sweep):
        assert num_trials(sweep) == 2
    assert num_trials(machine("third")) == 2


def test_a_killed_writer_s_journal_does_not_spoil_a_ledger_that_is_fetched(sweep, machine):
    second = machine("second")
    with sweep_lock(second):
        add_trial(second)
    (sweep / "ledger.db-journal").write_bytes(b"\xd9\xd5\x05\xf9 \xa1c\xd7" + b"\0" * 600)

    assert num_trials(sweep) == 2


def test_who_only_looks_leaves_a_living_driver_s_copy_alone(sweep, machine):
    with sweep_lock(sweep):
        add_trial(sweep)
        assert num_trials(machine("first")) == 2
    second = machine("second")
    assert not (second / "mlflow.db").exists()


def test_pictures_and_mlflow_are_fetched_by_who_needs_them(sweep, machine):
    with sweep_lock(sweep):
        (sweep / "front").mkdir()
        (sweep / "front" / "front.html").write_text("page")
    second = machine("second")
    assert not (second / "front").exists()

    refresh(second, is_whole=True)
    assert (second / "front" / "front.html").read_text() == "page"


class SlowStore(Remote):
    """A store whose first upload of the sweep's file takes until it is let go."""

    def __init__(self, address):
        super().__init__(address)
        self.has_begun, self.may_end = threading.Event(), threading.Event()

    def upload(self, path, key):
        content = path.read_bytes()
        if key == "sweep.toml" and not self.has_begun.is_set():
            self.has_begun.set()
            self.may_end.wait(10)
            slow = path.with_name("slow")
            slow.write_bytes(content)
            path = slow
        super().upload(path, key)


def test_a_slow_upload_never_puts_an_old_file_over_a_new_one(sweep, address):
    (sweep / "sweep.toml").write_text("# old\n")
    store = SlowStore(address)
    sender = Sender(sweep, store)
    in_background = threading.Thread(target=sender.send)
    in_background.start()
    assert store.has_begun.wait(10)
    (sweep / "sweep.toml").write_text("# newer\n")

    at_end = threading.Thread(target=sender.send)
    at_end.start()
    at_end.join(0.5)  # without a lock it has ended by now
    store.may_end.set()
    in_background.join()
    at_end.join()

    assert store.read("sweep.toml").data == b"# newer\n"


def test_two_machines_never_drive_one_sweep(sweep, machine, monkeypatch):
    monkeypatch.setattr(sync, "SECONDS", 1.0)
    with sweep_lock(sweep):
        second = machine("second")
        assert driver_pid(second) is not None
        refused = pytest.raises(LockedError, match=r"`s3://.*` must be free, but process .* runs")
        with refused, sweep_lock(second):
            pass
    assert driver_pid(second) is None
    with sweep_lock(second):
        pass


def test_a_word_reaches_a_driver_on_another_machine(sweep, machine, monkeypatch):
    monkeypatch.setattr(sync, "STOP_SECONDS", 0.1)
    second = machine("second")
    with sweep_lock(sweep):
        request_stop(second)
        for _ in range(100):
            if is_stop_requested(sweep):
                break
            sync.threading.Event().wait(0.1)
        assert is_stop_requested(sweep)


def test_a_store_that_is_away_at_the_end_loses_nothing(sweep, machine, monkeypatch):
    monkeypatch.setattr(sync, "END_SECONDS", 0)
    endpoint = sync.Remote.upload

    def away(*_):
        raise sync.StoreError("away")

    def work():
        with sweep_lock(sweep):
            monkeypatch.setattr(sync.Remote, "upload", away)
            add_trial(sweep)

    with pytest.raises(UnsentError, match=f"away; newer files are in `{sweep}`"):
        work()
    monkeypatch.setattr(sync.Remote, "upload", endpoint)
    assert num_trials(machine("second")) == 1
    with sweep_lock(sweep):
        pass
    assert num_trials(machine("second")) == 2


def test_a_sweep_of_a_store_is_packed_whole(sweep, machine, store, tmp_path):
    store.write("trials/0000/model/model.safetensors", b"model")
    store.write("features/features.bin", b"features")
    second = machine("second")
    pack(second, tmp_path / "sweep.tar.gz")
    unpack(tmp_path / "sweep.tar.gz", tmp_path / "plain")

    plain = tmp_path / "plain"
    assert address_of(plain) is None
    assert load_snapshot(plain).records == load_snapshot(sweep).records
    assert (plain / "trials" / "0000" / "model" / "model.safetensors").read_bytes() == b"model"
    assert (plain / "features" / "features.bin").exists()


def test_the_confirmations_of_a_copy_are_a_copy_too(sweep, machine, store, address):
    store.write("teacher/model/model.safetensors", b"model")
    inner = plan(load_snapshot(machine("second")), seeds=2)

    assert display_name(inner) == f"{address}/confirm"
    assert (inner / "teacher" / "model" / "model.safetensors").read_bytes() == b"model"
    again = plan(load_snapshot(machine("third")), seeds=2)
    assert again != inner
    assert load_snapshot(again).records == load_snapshot(inner).records
    assert num_trials(sweep) == 1


def test_a_model_is_fetched_by_its_trial(sweep, store, address):
    store.write("trials/0000/model/model.safetensors", b"model")
    shutil.rmtree(sweep)

    folder = model_path(f"{address}:0")
    assert (folder / "model.safetensors").read_bytes() == b"model"


def test_the_transfer_state_of_an_older_program_is_read_and_replaced(tmp_path):
    notes = tmp_path / ".store"
    notes.mkdir()
    old = {"generations": ["a1"], "viewed": "b2", "versions": {"k": "1"}, "stamps": {"k": "2"}}
    (notes / "memory.json").write_text(json.dumps(old))

    state = SyncState.load(tmp_path)
    state.save(tmp_path)

    assert (state.generations, state.viewed) == (["a1"], "b2")
    assert SyncState.load(tmp_path) == state
    assert [path.name for path in notes.iterdir()] == ["sync.json"]
