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
        found: Any = self.values
        for part in name.split("."):
            found = found.get(part, _MISSING) if isinstance(found, Mapping) else _MISSING
        return default if found is _MISSING else found

    def whole(self, name: str, *, low: int = 1, high: int = 65_536, default: Any = None) -> int:
        """A whole number in a range.

        Raises:
            ImportingError: if it is none.
        """
        found = self.get(name, default)
        if type(found) is not int or not low <= found <= high:
            raise self.wrong(name, f"a whole number from {low} to {high}", found)
        return found

    def number(self, name: str, *, default: float) -> float:
        """A number in [0, 1).

        Raises:
            ImportingError: if it is none.
        """
        found = self.get(name, default)
        if type(found) not in (int, float) or not 0 <= found < 1:
            raise self.wrong(name, "a number in [0, 1)", found)
        return float(found)

    def one_of(self, name: str, known: Sequence[Any], default: Any = _MISSING) -> Any:
        """A value that we can do, the first of them where none is given.

        Raises:
            ImportingError: if it is another.
        """
        found = self.get(name, known[0] if default is _MISSING else default)
        if not any(type(found) is type(each) and found == each for each in known):
            raise self.wrong(name, " or ".join(map(short_repr, known)), found)
        return found

    def wrong(self, name: str, rule: str, found: Any) -> ImportingError:
        return ImportingError(
            f"`{name}` of `{self.file}` must be {rule}, but is {short_repr(found)} instead."
        )
