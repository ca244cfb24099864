"""Nested plain values as TOML, which the standard library reads but does not write. Pure.

tomli-w is not used because its files are harder to read and edit: it writes a distribution as a
table of its own instead of `target_sparsity = { uniform = [0.2, 0.8] }`, and each item of a list on
a line of its own. (Comments are not concerned: `init` copies the text of a search space.)
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any


def lines(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """TOML of nested plain values."""
    sections = {k: v for k, v in table.items() if _is_section(v)}
    values = {k: v for k, v in table.items() if k not in sections and v is not None}
    # TOML wants the values of a table before its sub-tables. A table of nothing but sub-tables
    # needs no header of its own.
    if prefix and values:
        yield f"\n[{prefix.removesuffix('.')}]"
    for key, value in values.items():
        yield f"{_key(key)} = {_value(value)}"
    for key, section in sections.items():
        yield from lines(section, f"{prefix}{_key(key)}.")


def _key(key: str) -> str:
    """Labels may have dots and slashes."""
    # `zone` stays bare; `ray.io/zone` is written as "ray.io/zone", or it would be two tables.
    is_bare = key.replace("-", "_").isidentifier() and key.isascii()
    return key if is_bare else _scalar(key)


def _is_section(value: Any) -> bool:
    """A distribution is a table too, but its only value is a list of plain values."""
    return isinstance(value, Mapping) and not (
        len(value) == 1 and next(iter(value)) in ("uniform", "log_uniform", "int_uniform", "choice")
    )


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{k} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    """JSON's scalars are TOML's, but for DEL, which TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
