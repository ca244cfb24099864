import importlib
import os

import pytest

import core

NAME = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


@pytest.mark.parametrize("said", ["", "64"])
def test_more_kernels_are_kept_than_onednn_would_unless_someone_says_how_many(monkeypatch, said):
    monkeypatch.delenv(NAME)
    if said:
        monkeypatch.setenv(NAME, said)
    importlib.reload(core)
    assert int(os.environ[NAME]) == (int(said) if said else 16_384)
