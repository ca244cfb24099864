"""Malformed tensors, and what a refusal of a model must be: one clear line, and nothing written."""

import pytest
import torch

from core.importers.load import import_model
from core.importers.safe_read import ImportingError


def with_malformed_tensor(tensors, name, rng):
    """Tensors of which one is gone, renamed, of another shape, of whole numbers, or not finite."""
    others = {key: tensor for key, tensor in tensors.items() if key != name}
    tensor = tensors[name]
    changed = rng.choice(
        [
            {},
            {f"{name}_": tensor},
            {name: tensor[None]},
            {name: tensor[:-1]},
            {name: tensor.long()},
            {name: tensor * torch.nan},
            {name: torch.zeros(1).expand(10**6, 10**6)},
            {name: "not a tensor"},
        ]
    )
    return others | changed


def check_refused(file, folder):
    """One line, and the folder holds nothing new."""
    before = sorted(folder.rglob("*"))

    with pytest.raises(ImportingError) as refused:
        import_model(str(file), folder / "out")

    line = str(refused.value)
    assert "\n" not in line
    assert "`" in line
    assert len(line) < 700
    assert sorted(folder.rglob("*")) == before
