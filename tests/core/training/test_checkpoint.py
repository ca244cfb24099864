import pytest
import torch

from core.training import checkpoint
from core.training.checkpoint import CheckpointError


def test_the_newest_checkpoint_comes_back(tmp_path):
    for step in (5, 10, 15):
        checkpoint.save(tmp_path, step, {"step": step, "weights": torch.full((3,), float(step))})

    state = checkpoint.load_newest(tmp_path)

    assert state["step"] == 15
    assert torch.equal(state["weights"], torch.full((3,), 15.0))


def test_older_ones_go_but_for_one(tmp_path):
    for step in range(6):
        checkpoint.save(tmp_path, step, {"step": step})

    assert sorted(p.name for p in tmp_path.iterdir()) == ["000000004", "000000005"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "no_checksum", "no_state"])
def test_a_damaged_one_is_passed_over_for_the_one_before(tmp_path, damage):
    checkpoint.save(tmp_path, 1, {"step": 1})
    checkpoint.save(tmp_path, 2, {"step": 2})
    harm(tmp_path / "000000002", damage)

    assert checkpoint.load_newest(tmp_path)["step"] == 1


@pytest.mark.parametrize("damage", ["truncate", "flip", "no_checksum", "no_state"])
def test_when_all_are_damaged_it_says_so_and_how_to_go_on(tmp_path, damage):
    checkpoint.save(tmp_path, 1, {"step": 1})
    harm(tmp_path / "000000001", damage)

    with pytest.raises(CheckpointError, match=r"all 1 are damaged; delete the folder"):
        checkpoint.load_newest(tmp_path)


def harm(folder, damage):
    state = folder / "state.pt"
    if damage == "truncate":
        state.write_bytes(state.read_bytes()[:-9])
    elif damage == "flip":
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    else:
        (folder / {"no_checksum": "sha256", "no_state": "state.pt"}[damage]).unlink()


def test_where_there_never_was_one_there_is_none(tmp_path):
    assert checkpoint.load_newest(tmp_path / "nowhere") is None


def test_what_a_kill_left_half_written_is_not_a_checkpoint(tmp_path):
    checkpoint.save(tmp_path, 1, {"step": 1})
    half = tmp_path / ".000000002.123"
    half.mkdir()
    (half / "state.pt").write_bytes(b"half")

    assert checkpoint.load_newest(tmp_path)["step"] == 1


def test_a_checkpoint_runs_no_code(tmp_path, capsys):
    class Bomb:
        def __reduce__(self):
            return (print, ("code ran",))

    checkpoint.save(tmp_path, 1, {"bomb": Bomb()})

    with pytest.raises(CheckpointError, match="must hold a checkpoint"):
        checkpoint.load_newest(tmp_path)
    assert "code ran" not in capsys.readouterr().out


def test_a_disk_that_takes_nothing_costs_no_earlier_checkpoint(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, {"step": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, 2, {"step": 2})

    assert checkpoint.load_newest(tmp_path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["000000001"]
