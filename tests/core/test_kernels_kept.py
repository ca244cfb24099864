"""OneDNN's cache holds the kernels of speech of many lengths, and not of a hundred trials."""

import pytest

from core import environment

NAME = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


@pytest.mark.parametrize("value", ["", "64"])
def test_the_cache_is_larger_than_onednn_s_own_unless_the_user_sets_it(value):
    variables = {NAME: value} if value else {}

    environment.set_defaults(variables)

    kernels = int(variables[NAME])
    assert kernels == 64 if value else 1024 < kernels <= 4096
