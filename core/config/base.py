"""The base of all configuration: a strict, frozen model whose errors name the key.

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
    """A configuration that is not valid; its message has one line for each fault."""


class Config(BaseModel):
    """The base of all configuration: frozen, and without unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,  # infinity would meet every lower bound
        validate_default=True,
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


def _line(root: type[Config], kind: str, location: tuple[int | str, ...], detail: Any) -> str:
    name = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        keys = _keys_at(root, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), keys, n=1)
        # `pruning.metod` is near `method`; `pruning.zzz` is near nothing, and all keys are listed.
        hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(keys)}"
        return f"`{name}` is not a key; {hint}"
    # Raised by a validator of ours, whose message already has the grammar of the others.
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    rule = detail["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"`{name}` must be {rule}, but is {detail['input']!r} instead"


def _keys_at(root: type[Config], location: tuple[int | str, ...]) -> list[str]:
    node: type[BaseModel] = root
    for part in location:
        field = node.model_fields.get(str(part))  # a key of a table is none
        node = (field and section_of(field)) or node
    return list(node.model_fields)


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """Returns the section that a field holds, optional or not, or of which it holds a table."""
    kinds = [field.annotation]
    if typing.get_origin(field.annotation) in (typing.Union, types.UnionType, dict):
        kinds = list(typing.get_args(field.annotation))
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
