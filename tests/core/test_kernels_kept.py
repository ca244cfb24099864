import importlib
import os

import pytest

import core

NAME = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


@pytest.mark.parametrize("capacity", ["", "64"])
def test_more_kernels_are_kept_than_onednn_would_unless_someone_says_how_many(
    monkeypatch, capacity
):
    monkeypatch.delenv(NAME)
    if capacity:
        monkeypatch.setenv(NAME, capacity)
    importlib.reload(core)
    assert int(os.environ[NAME]) == (int(capacity) if capacity else 16_384)
