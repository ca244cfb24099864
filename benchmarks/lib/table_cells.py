"""How the README's tables say a number: shares as percent, rates with their intervals."""

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]


def wer_of(row: Row) -> str:
    return with_interval(row, "wer")


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def removed(share: float) -> str:
    """What a resource has become, by the share that is gone: more of it, if that is negative."""
    return f"{-100 * share:+.1f} %"


def with_interval(row: Row, key: str, *, sign: str = "") -> str:
    middle, low, high = (100 * row[k] for k in (key, f"{key}_low", f"{key}_high"))
    return f"{middle:{sign}.2f} ({low:{sign}.2f} to {high:{sign}.2f})"
