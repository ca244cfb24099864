import json

import pytest
import torch

from core.report import Report
from core.training import checkpoint
from sweep.storage.checkpoints import (
    RemoteState,
    State,
    params_digest,
    prepare_with_remote_state,
    run_with_remote_state,
)
from sweep.storage.object_store import Remote, StoreError

DIGEST = params_digest({"pruning.target_sparsity": 0.5})


@pytest.fixture
def store(address):
    return Remote(address)


@pytest.fixture
def machine(tmp_path):
    """A sweep's folder on a machine of that name."""
    return lambda name: tmp_path / name / "sweep"


def steps(folder, last, *, every=1, save=True):
    """A trial of so many steps: it counts from its newest checkpoint on, and leaves a model."""
    if (folder / "outcomes.json").is_file():
        return json.loads((folder / "outcomes.json").read_text())[0]["how"]
    keys = checkpoint.load_newest(folder / "checkpoints")
    first = keys["step"] if keys else 0
    for step in range(first + 1, last + 1):
        if save:
            checkpoint.save(folder / "checkpoints", step, {"step": step, "x": torch.ones(3)})
        if step % every == 0:
            yield Report(stage="tune", step=step, total_steps=last)
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors").write_bytes(b"model")
    outcome = {"steps": last, "how": f"from {first}"}
    (folder / "outcomes.json").write_text(json.dumps([outcome]))
    return outcome["how"]


def trial(store, sweep, last, *, digest=DIGEST, number=7, **others):
    folder = sweep / "trials" / f"{number:04}"
    remote_state = RemoteState(address=store.address, digest=digest)
    return run_with_remote_state(
        steps(folder, last, **others), remote_state, folder=folder, sweep=sweep
    )


def ended(generator):
    """All it yields, then what it returns."""
    reports = []
    while True:
        try:
            reports.append(next(generator).step)
        except StopIteration as end:
            return reports, end.value


def test_a_trial_goes_on_elsewhere_from_the_last_it_reported(store, machine):
    began = trial(store, machine("a"), 9)
    assert [next(began).step for _ in range(3)] == [1, 2, 3]
    began.close()

    assert ended(trial(store, machine("b"), 5)) == ([4, 5], "from 3")


def test_a_report_goes_out_only_once_its_checkpoint_is_in_the_store(store, machine):
    for report in trial(store, machine("a"), 3):
        assert f"trials/0007/checkpoints/{report.step:09d}/sha256" in store.under("trials")


def test_no_more_than_the_newest_checkpoints_stay(store, machine):
    ended(trial(store, machine("a"), 6))

    there = {key.split("/")[3] for key in store.under("trials/0007/checkpoints")}
    assert there == {"000000005", "000000006"}


@pytest.mark.parametrize("damage", ["no checksum", "cut short", "gone"])
def test_the_newest_whole_checkpoint_wins(store, machine, damage):
    began = trial(store, machine("a"), 9)
    for _ in range(3):
        next(began)
    began.close()
    newest = "trials/0007/checkpoints/000000003"
    if damage == "no checksum":
        store.delete(f"{newest}/sha256")
    elif damage == "cut short":
        store.write(f"{newest}/state.pt", store.read(f"{newest}/state.pt").data[:-9])
    else:
        store.delete(f"{newest}/sha256", f"{newest}/state.pt")

    assert ended(trial(store, machine("b"), 4)) == ([3, 4], "from 2")


def test_what_is_newer_here_is_not_fetched(store, machine):
    ended(trial(store, machine("a"), 2, number=1))
    began = trial(store, machine("b"), 9, number=1)
    (machine("b") / "trials" / "0001").mkdir(parents=True)
    began.close()
    begun = trial(store, machine("b"), 9, number=2)
    for _ in range(4):
        next(begun)
    begun.close()
    store.delete(*store.under("trials/0002/checkpoints"))

    assert ended(trial(store, machine("b"), 5, number=2)) == ([5], "from 4")


def test_a_finished_trial_is_finished_everywhere(store, machine):
    ended(trial(store, machine("a"), 2))

    assert ended(trial(store, machine("b"), 2)) == ([], "from 0")
    folder = machine("b") / "trials" / "0007"
    assert (folder / "model" / "model.safetensors").read_bytes() == b"model"


def test_a_finished_trial_that_was_prolonged_goes_on_elsewhere_from_there(store, machine):
    ended(trial(store, machine("a"), 2))
    ended(trial(store, machine("b"), 2))
    prolonged = machine("a") / "trials" / "0007"
    checkpoint.save(prolonged / "checkpoints", 5, {"step": 5})
    (prolonged / "outcomes.json").write_text('[{"steps": 5, "how": "on"}]')
    ended(trial(store, machine("a"), 2))
    state = State(store, prolonged, "trials/0007")
    state.send_checkpoint()

    assert ended(trial(store, machine("b"), 2)) == ([], "on")
    newest = checkpoint.load_newest(machine("b") / "trials" / "0007" / "checkpoints")
    assert newest["step"] == 5


def test_another_trial_of_the_same_number_starts_afresh(store, machine):
    ended(trial(store, machine("a"), 3))
    other = params_digest({"pruning.target_sparsity": 0.6})

    assert ended(trial(store, machine("b"), 2, digest=other)) == ([1, 2], "from 0")
    assert ended(trial(store, machine("a"), 2, digest=other)) == ([], "from 0")
    newest = checkpoint.load_newest(machine("a") / "trials" / "0007" / "checkpoints")
    assert newest["step"] == 2


def test_checkpoints_between_reports_are_sent_too(store, machine, monkeypatch):
    monkeypatch.setattr("sweep.storage.checkpoints.WATCH_SECONDS", 0.05)

    def slow(folder):
        checkpoint.save(folder / "checkpoints", 1, {"step": 1})
        for _ in range(200):
            if "trials/0007/checkpoints/000000001/sha256" in store.under("trials"):
                return "seen"
        yield Report(stage="tune", step=2, total_steps=2)
        return "unseen"

    folder = machine("a") / "trials" / "0007"
    remote_state = RemoteState(address=store.address, digest=DIGEST)
    assert (
        ended(run_with_remote_state(slow(folder), remote_state, folder=folder, sweep=machine("a")))[
            1
        ]
        == "seen"
    )


def test_without_a_store_a_trial_is_as_it_was(machine):
    folder = machine("a") / "trials" / "0007"

    assert ended(
        run_with_remote_state(steps(folder, 2), None, folder=folder, sweep=machine("a"))
    ) == (
        [1, 2],
        "from 0",
    )
    assert not (folder / "begun").exists()


def speech_and_teacher(sweep, last=2):
    """The files that all trials share, unless they exist."""
    if (sweep / "teacher" / "model" / "model.safetensors").is_file():
        return
    note = checkpoint.load_newest(sweep / "teacher" / "checkpoints")
    for step in range(note["step"] + 1 if note else 1, last + 1):
        checkpoint.save(sweep / "teacher" / "checkpoints", step, {"step": step})
        yield Report(stage="teacher", step=step, total_steps=last)
    for name in ("teacher/model/model.safetensors", "features/train-1/features.bin"):
        (sweep / name).parent.mkdir(parents=True)
        (sweep / name).write_bytes(b"1" * 1000)


def test_teacher_and_features_are_made_once_and_fetched_once_a_machine(store, machine):
    remote_state = RemoteState(address=store.address)
    began = prepare_with_remote_state(
        speech_and_teacher(machine("a"), 9), remote_state, sweep=machine("a")
    )
    assert next(began).step == 1
    began.close()

    made = prepare_with_remote_state(
        speech_and_teacher(machine("b")), remote_state, sweep=machine("b")
    )
    assert [report.step for report in made] == [2]
    again = prepare_with_remote_state(
        speech_and_teacher(machine("c")), remote_state, sweep=machine("c")
    )
    assert [report.step for report in again] == []
    ended(trial(store, machine("d"), 1))
    features = machine("d") / "features" / "train-1" / "features.bin"
    assert features.read_bytes() == b"1" * 1000
    features.write_bytes(b"untouched")
    ended(trial(store, machine("d"), 1, number=8))
    assert features.read_bytes() == b"untouched"


def test_features_that_do_not_match_their_checksum_are_refused(store, machine, monkeypatch):
    monkeypatch.setattr("sweep.storage.checkpoints.PATIENCE_SECONDS", 0)
    remote_state = RemoteState(address=store.address)
    list(
        prepare_with_remote_state(
            speech_and_teacher(machine("a")), remote_state, sweep=machine("a")
        )
    )
    store.write("features/train-1/features.bin", b"2" * 1000)

    with pytest.raises(StoreError, match="must match its checksum"):
        ended(trial(store, machine("b"), 1))
    assert not (machine("b") / "features" / "train-1" / "features.bin").exists()
