"""Sensitivity tables as files: what was written is read, anything else is computed anew."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.pruning.fisher_tables import fisher_tables
from core.pruning.space import Space
from core.pruning.table_files import load_tables, save_tables, tables_digest
from core.testing import ragged_speech, small_model

AXES = ["frontend", "head", "inner", "channel"]


@pytest.fixture
def space():
    return Space.of(small_model().eval(), AXES, 4.0)


@pytest.fixture
def tables(space):
    return tuple(fisher_tables(space.model, space, [ragged_speech(90, 60)], seed=0))


def test_tables_are_read_as_they_were_written(space, tables, tmp_path):
    save_tables(tables, tmp_path / "tables", digest="one")

    found = load_tables(tmp_path / "tables", space.units, digest="one")

    for a, b in zip(found.values(), tables, strict=True):
        assert a.axis == b.axis
        for part in ("order", "counts", "increase"):
            assert torch.equal(getattr(a, part), getattr(b, part))


def test_tables_of_anything_else_are_not_taken(space, tables, tmp_path):
    save_tables(tables, tmp_path / "tables", digest="one")

    assert load_tables(tmp_path / "tables", space.units, digest="two") == {}
    assert load_tables(tmp_path / "missing", space.units, digest="one") == {}


def test_those_that_were_finished_are_taken(space, tables, tmp_path):
    save_tables(tables[1:], tmp_path / "tables", digest="one")

    found = load_tables(tmp_path / "tables", space.units, digest="one")

    assert list(found) == [table.axis.name for table in tables[1:]]


@pytest.mark.parametrize("what", ["weights", "speech", "settings", "seed"])
def test_the_digest_changes_with_all_that_tables_depend_on(what, space):
    speech = [ragged_speech(90, 60)]
    digest = tables_digest(space.model, speech, "fisher", seed=0)
    assert digest == tables_digest(space.model, [ragged_speech(90, 60)], "fisher", seed=0)

    if what == "weights":
        with torch.no_grad():
            space.model.head.bias[0] += 1
    other = tables_digest(
        space.model,
        [ragged_speech(90, 60, seed=3)] if what == "speech" else speech,
        "measured" if what == "settings" else "fisher",
        seed=1 if what == "seed" else 0,
    )

    assert other != digest


@pytest.mark.parametrize("count", [0, 100, -10])
def test_a_damaged_file_holds_none(count, space, tables, tmp_path):
    save_tables(tables, tmp_path / "tables", digest="one")
    content = (tmp_path / "tables").read_bytes()
    (tmp_path / "tables").write_bytes(content[:count])

    assert load_tables(tmp_path / "tables", space.units, digest="one") == {}


@pytest.mark.parametrize(
    "damage",
    [
        {"order": torch.zeros(3, dtype=torch.int64)},
        {"counts": torch.tensor([5, 2])},
        {"counts": torch.tensor([], dtype=torch.int64)},
        {"increase": torch.tensor([float("nan")])},
    ],
)
def test_a_table_that_cannot_be_is_none(damage, space, tables, tmp_path):
    file, axis = tmp_path / "tables", tables[0].axis.name
    save_tables(tables, file, digest="one")
    tensors = load_file(file) | {f"{axis}/{part}": tensor for part, tensor in damage.items()}
    save_file(tensors, file, metadata={"digest": "one"})

    found = load_tables(file, space.units, digest="one")
    assert set(found) == {table.axis.name for table in tables[1:]}
