"""Files and folders are whole or not there; what a dead process left is cleared, nothing else."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from core import files
from core.files import (
    atomic_folder,
    own_temporary_folder,
    process_tag,
    remove_leftovers,
    remove_temporary_folders,
    replaced_files,
    temporary_folder,
    temporary_path,
    whole_file,
)


def of_a_dead_process(code, *arguments):
    """What a process printed that is killed in the middle of its work."""
    end = "\nimport os, signal\nsys.stdout.flush()\nos.kill(os.getpid(), signal.SIGKILL)\n"
    head = "import sys\nfrom pathlib import Path\nfrom core.files import *\n"
    command = [sys.executable, "-P", "-c", head + code + end, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == -9, done.stderr
    return done.stdout.strip()


HALF_A_FOLDER = """
import core.files as placing
beside = placing.temporary_path(Path(sys.argv[1]))
beside.mkdir()
(beside / "half").write_text("half")
"""


@pytest.mark.parametrize("write", [atomic_folder, whole_file, replaced_files])
def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_there(tmp_path, write):
    final = tmp_path / "model"
    of_a_dead_process(HALF_A_FOLDER, final)
    assert len(list(tmp_path.iterdir())) == 1
    if write is replaced_files:
        remove_leftovers(tmp_path)

    with write(final) as tmp:
        if write is whole_file:
            tmp.write_text("all")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_belongs_to_others_stays(tmp_path):
    live = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = files._start_of(live.pid)
    machine = process_tag().rpartition("-")[2]
    others = [
        f".model.{process_tag()}",
        f".model.{live.pid}-{start:x}-{machine}",
        ".model.1-ab-c0ffee",  # another machine's
        ".model.31791",  # an earlier version's: nobody can tell whose
        ".bashrc",
        "model.1-ab-c0ffee",
    ]
    for name in others:
        (tmp_path / name).write_text("other")
    dead = tmp_path / f".model.{live.pid}-{start + 1:x}-{machine}"  # the id, but another process
    dead.write_text("ours")

    try:
        assert remove_leftovers(tmp_path) == [dead]
    finally:
        live.communicate(b"\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_whoever_holds_the_lock_clears_what_other_machines_left_too(tmp_path):
    inner = tmp_path / "checkpoints"
    inner.mkdir()
    leftovers = [".000000050.31791", ".000000050.1-ab-c0ffee", ".model.31791.old"]
    for name in leftovers:
        (inner / name).mkdir()
    mine = temporary_path(inner / "000000060")
    mine.mkdir()
    (inner / "000000050").mkdir()

    removed = remove_leftovers(tmp_path, is_recursive=True, is_locked=True)

    assert sorted(path.name for path in removed) == sorted(leftovers)
    assert sorted(inner.iterdir()) == sorted([mine, inner / "000000050"])


def test_a_link_is_removed_and_never_what_it_points_to(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("precious")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / ".model.31791").symlink_to(precious)

    remove_leftovers(folder, is_locked=True)

    assert list(folder.iterdir()) == []
    assert (precious / "file").read_text() == "precious"


def test_a_new_file_never_takes_the_place_of_one_that_is_there(tmp_path):
    file = tmp_path / "ledger.db"

    def write_second():
        with whole_file(file) as tmp:
            tmp.write_text("second")
            file.write_text("first")

    with pytest.raises(FileExistsError):
        write_second()
    assert file.read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.db"]


def test_what_lies_next_to_a_new_file_goes(tmp_path):
    with whole_file(tmp_path / "ledger.db") as tmp:
        tmp.write_text("all")
        tmp.with_name("ledger.db-journal").write_text("a library's")

    assert [path.name for path in tmp_path.iterdir()] == ["ledger.db"]


def test_a_name_as_long_as_names_can_be_has_a_temporary_one(tmp_path):
    name = "é" * 126

    with atomic_folder(tmp_path / name) as tmp:
        (tmp / "file").touch()
    assert [path.name for path in tmp_path.iterdir()] == [name]


IN_A_TEMPORARY_FOLDER = """
import tempfile
entered = own_temporary_folder()
own = entered.__enter__()
kept = [tempfile.mkdtemp(), temporary_folder("tune")]
print(own)
"""


def test_all_temporary_files_of_a_killed_process_are_cleared_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    leftovers = Path(of_a_dead_process(IN_A_TEMPORARY_FOLDER))
    assert list(tmp_path.iterdir()) == [leftovers]
    assert len(list(leftovers.iterdir())) == 2
    others = tmp_path / "conformer-sweep-notes"
    others.mkdir()

    with own_temporary_folder() as own:
        assert Path(tempfile.mkdtemp()).parent == own
        assert sorted(tmp_path.iterdir()) == sorted([own, others])
    assert list(tmp_path.iterdir()) == [others]


WRITES_LATE = """
import sys, time
from pathlib import Path
for _ in range(4):
    time.sleep(0.15)
    (Path(sys.argv[1]) / "logs").mkdir(parents=True, exist_ok=True)
"""


def test_a_folder_that_children_make_again_while_they_end_is_cleared(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    with own_temporary_folder() as own:
        (own / "ray").mkdir()
        child = subprocess.Popen([sys.executable, "-S", "-c", WRITES_LATE, own / "ray"])  # noqa: S603

    assert child.wait() == 0
    assert not own.exists()


def test_a_folder_that_orphans_of_a_killed_process_made_again_is_cleared(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = tmp_path / f"conformer-sweep-{2**22}-ab-{process_tag()[-6:]}"

    with own_temporary_folder():
        (dead / "ray").mkdir(parents=True)

    assert not list(tmp_path.iterdir())


def test_a_folder_that_outlives_its_maker_is_cleared_wherever_it_was_made(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary_folder("tune") as live:
        remove_temporary_folders(tmp_path)
        assert Path(live).is_dir()
        dead = Path(live).with_name(f"conformer-sweep-tune-x-{2**22}-ab-{live[-6:]}")
        dead.mkdir()
        remove_temporary_folders(tmp_path)
        assert [str(path) for path in tmp_path.iterdir()] == [live]


def test_a_temporary_directory_that_cannot_be_written_changes_nothing(tmp_path, monkeypatch):
    missing = str(tmp_path / "missing")
    monkeypatch.setattr(tempfile, "tempdir", missing)

    with own_temporary_folder() as own:
        assert own is None
        assert tempfile.gettempdir() == missing


def test_a_tag_tells_processes_and_survives_a_zombie():
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)

    assert files._start_of(zombie.pid) is None
    assert files._start_of(os.getpid()) is not None
    zombie.wait()
