"""Values as JSON for scripts."""

import json
import math
from collections.abc import Mapping
from typing import Any


def as_json(values: Any) -> str:
    """Returns one JSON value on one line; NaN and infinity become null, as JSON has neither."""
    try:
        # Most values are finite, so the copy with nulls is made only when this fails.
        return json.dumps(values, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(values))


def _finite(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
