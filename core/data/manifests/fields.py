"""Fields that the records of every manifest share, and the words in which a wrong one is refused.

Every number is finite and has bounds: what lies outside was never measured by anyone.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)
from pydantic_core import PydanticCustomError

# Zl and Zp are U+2028 and U+2029, which end lines as well.
_ONE_LINE = r"^[^\p{Cc}\p{Zl}\p{Zp}]+$"
"""No control characters: names are shown in terminals and written in lists."""
MOST_SECONDS = 1e7
"""Of a recording: four months."""
LONGEST_MIX = 7200.0
"""Seconds of a mix, as all of it is made in memory."""


class Record(BaseModel):
    """One object of a manifest: strict types, finite numbers, and keys that are not read."""

    # Strict: "16000" is no number, and true is none. Unknown keys are dropped, as other programs
    # write their own. Validators are built at their first use, so that importing stays fast.
    model_config = ConfigDict(
        extra="ignore", strict=True, frozen=True, allow_inf_nan=False, defer_build=True
    )


def _whole(value: Any) -> Any:
    """A number such as 16000.0 is whole, too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _as_list(value: Any) -> Any:
    """One channel may stand without a list."""
    return value if isinstance(value, list) else [value]


def _encodable(value: str) -> str:
    """JSON can hold half a pair of characters, which no file can."""
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise PydanticCustomError("string_unicode", "be a string of whole characters")
    return value


Text = Annotated[str, AfterValidator(_encodable)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=_ONE_LINE)]
Start = Annotated[float, Field(ge=-MOST_SECONDS, le=MOST_SECONDS)]
Offset = Annotated[float, Field(ge=0, le=MOST_SECONDS)]
Duration = Annotated[float, Field(gt=0, le=MOST_SECONDS)]
Decibels = Annotated[float, Field(ge=-1000, le=1000)]
Rate = Annotated[int, BeforeValidator(_whole), Field(ge=100, le=768_000)]
Count = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=10**13)]
Channel = Annotated[int, Field(ge=0, le=1023)]
Channels = Annotated[list[Channel], BeforeValidator(_as_list), Field(min_length=1, max_length=1024)]

_TAGS = frozenset(
    (
        *("MonoCut", "PaddingCut", "Recording", "Cut"),
        *("Speed", "Volume", "Resample", "Clipping", "Compress", "Narrowband", "Tempo"),
        *("ReverbWithImpulseResponse", "LoudnessNormalization", "DereverbWPE"),
    )
)
"""Of unions; pydantic puts them among the names of fields."""
_RULES = {
    "missing": "be given",
    "string_type": "be a string",
    "string_unicode": "be a string of whole characters",
    "string_pattern_mismatch": "have no line breaks or control characters",
    "string_too_short": "not be empty",
    "string_too_long": "be shorter",
    "too_long": "be shorter",
    "int_type": "be a whole number",
    "float_type": "be a number",
    "bool_type": "be true or false",
    "finite_number": "be a finite number",
    "list_type": "be a list",
    "dict_type": "be an object",
    "model_type": "be an object",
    "model_attributes_type": "be an object",
    "extra_forbidden": "not be given",
    "recursion_loop": "be less deep",
}


def broken_rule(detail: Mapping[str, Any]) -> str:
    """Turns one of pydantic's error details into the wording of all errors here."""
    name, kind = _name(detail), detail["type"]
    if kind == "value_error":
        return f"`{name}` {detail['ctx']['error']}" if name else str(detail["ctx"]["error"])
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _rule_of_kind(name, detail["ctx"])
    if kind == "too_short":
        return f"`{name}` must not be empty, but is instead"
    # "Input should be less than or equal to 10" becomes "`factor` must be less than or equal to 10,
    # but is 20.0 instead".
    message = detail["msg"].removeprefix("Input should ").removeprefix("have ")
    rule = _RULES.get(kind) or (message if message.startswith("be ") else f"have {message}")
    if kind == "missing":
        return f"`{name}` must {rule}, but is missing instead"
    return f"`{name}` must {rule}, but is {short_repr(detail['input'])} instead{_repair(detail)}"


def _rule_of_kind(name: str, context: Mapping[str, str]) -> str:
    """Returns the message for a transform of an unknown kind."""
    key = f"{name}.{context['discriminator']}".replace("'", "")
    if "tag" not in context:
        return f"`{key}` must be given, but is missing instead"
    expected_tags = context["expected_tags"].replace("'", "`")
    return f"`{key}` must be one of {expected_tags}, but is {short_repr(context['tag'])} instead"


def short_repr(value: object) -> str:
    """A value of a file, short and without control characters."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _name(detail: Mapping[str, Any]) -> str:
    """The field's path; a union's tags are no part of it."""
    return ".".join(str(part) for part in detail["loc"] if part not in _TAGS)


def _repair(detail: Mapping[str, Any]) -> str:
    value = detail["input"]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return "; put it in quotes" if detail["type"] == "string_type" and is_number else ""
