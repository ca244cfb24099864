"""The base of all configuration: what it refuses, and in which words.

Unknown keys, wrong types and impossible values are refused with the name of the culprit, the rule,
the value and the nearest right name.
"""

import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

ConfigT = TypeVar("ConfigT", bound="Config")


class ConfigError(ValueError):
    """A configuration that cannot be; its message has one line a culprit."""


class Config(BaseModel):
    """The base of all configuration: frozen, and nothing unknown passes."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )

    @classmethod
    def parse(cls: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:  # noqa: PYI019 - see below
        """Read nested plain values, as TOML gives them.

        Raises:
            ConfigError: with one line for each unknown key, wrong type or impossible value.
        """
        # No `Self`: the tests execute annotations, and beartype refuses it outside its own classes.
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError("\n".join(_lines(cls, error))) from None


def _lines(root: type[Config], error: ValidationError) -> list[str]:
    return [_line(root, detail["type"], detail["loc"], detail) for detail in error.errors()]


def _line(root: type[Config], kind: str, place: tuple[int | str, ...], detail: Any) -> str:
    name = ".".join(str(part) for part in place)
    if kind == "extra_forbidden":
        known = _keys_at(root, place[:-1])
        near = difflib.get_close_matches(str(place[-1]), known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(known)}"
        return f"`{name}` is not a key; {hint}"
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    rule = detail["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"`{name}` must be {rule}, but is {detail['input']!r} instead"


def _keys_at(root: type[Config], place: tuple[int | str, ...]) -> list[str]:
    node: type[BaseModel] = root
    for part in place:
        field = node.model_fields.get(str(part))  # a key of a table is none
        node = (field and _section(field)) or node
    return list(node.model_fields)


def _section(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field holds, if it holds one, optional or not, or a table of them."""
    kinds = [field.annotation]
    if typing.get_origin(field.annotation) in (typing.Union, types.UnionType, dict):
        kinds = list(typing.get_args(field.annotation))
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
