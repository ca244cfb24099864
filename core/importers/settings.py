"""The settings of another program's model, each looked at: what we cannot do is refused by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.importers.safe_read import ImportingError, short_repr

_MISSING = object()


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """A table inside tables, asked by dotted names."""

    file: str
    values: Mapping[str, Any]

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or a default where it or a table above it is missing."""
        # `get("encoder.d_model")` of {"encoder": {"d_model": 512}} is 512; of {"encoder": None} the
        # default.
        value: Any = self.values
        for part in name.split("."):
            # A missing table is passed on: whatever is below it is missing as well.
            value = value.get(part, _MISSING) if isinstance(value, Mapping) else _MISSING
        return default if value is _MISSING else value

    def whole(self, name: str, *, low: int = 1, high: int = 65_536, default: Any = None) -> int:
        """A whole number in a range.

        Args:
            name: dotted.
            low: the smallest that is allowed.
            high: the largest that is allowed.
            default: taken where none is given; None refuses that.

        Raises:
            ImportingError: if it is none.
        """
        value = self.get(name, default)
        # Not `isinstance`: true is an instance of int.
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(name, f"a whole number from {low} to {high}", value)
        return value

    def number(self, name: str, *, default: float) -> float:
        """A number in [0, 1).

        Raises:
            ImportingError: if it is none.
        """
        value = self.get(name, default)
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise self.wrong(name, "a number in [0, 1)", value)
        return float(value)

    def one_of(self, name: str, allowed: Sequence[Any], default: Any = _MISSING) -> Any:
        """A value that we can do, the first of them where none is given.

        Raises:
            ImportingError: if it is another.
        """
        value = self.get(name, allowed[0] if default is _MISSING else default)
        # In Python 1 == True == 1.0: without the types, `use_bias: 1` would pass for true.
        if not any(type(value) is type(choice) and value == choice for choice in allowed):
            raise self.wrong(name, " or ".join(map(short_repr, allowed)), value)
        return value

    def wrong(self, name: str, rule: str, value: Any) -> ImportingError:
        return ImportingError(
            f"`{name}` of `{self.file}` must be {rule}, but is {short_repr(value)} instead."
        )
