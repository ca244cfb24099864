"""Which keys of a trial's configuration belong to which pruning methods.

Each file of core/methods states it, where it differs from the rest, in two literal tuples of dotted
names: `KEYS`, the keys that this method reads and other methods may not, and `IGNORES`, keys that
this method does not read though the others do. A key that no file names is read whatever the
method. The tuples are read from the source text: to import a method is to import torch, for which
`check` need not wait.
"""

import ast
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from core.config.trial import METHODS_FOLDER, method_names

READ_BY_NONE = frozenset({"boosting.task_weight"})
"""Keys for `conformer-sweep adapt` alone: in a trial, `distillation.task_weight` is the weight."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodKeys:
    """What the file of one method states of keys, by dotted names such as `pruning.rounds`."""

    keys: frozenset[str] = frozenset()
    """Keys that this method reads and other methods may not."""
    ignores: frozenset[str] = frozenset()
    """Keys that this method does not read though the others do."""


@cache
def method_keys() -> Mapping[str, MethodKeys]:
    """What each method of the folder states, by the method's name."""
    return {name: _stated(name) for name in method_names()}


def _stated(name: str) -> MethodKeys:
    source = (METHODS_FOLDER / f"{name}.py").read_text(encoding="utf-8")
    tuples = {
        target.id: frozenset(ast.literal_eval(node.value))
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id in ("KEYS", "IGNORES")
    }
    return MethodKeys(
        keys=tuples.get("KEYS", frozenset()), ignores=tuples.get("IGNORES", frozenset())
    )


def methods_that_read(key: str) -> list[str]:
    """The methods that read a key, sorted; all of them where no file says otherwise."""
    if key in READ_BY_NONE:
        return []
    stated = method_keys()
    owners = [name for name in stated if key in stated[name].keys]
    return owners or [name for name in stated if key not in stated[name].ignores]


def unused_keys(keys: Iterable[str], methods: Collection[str]) -> list[str]:
    """Those of the keys that none of the methods reads, in their order."""
    return [key for key in keys if not set(methods).intersection(methods_that_read(key))]


def stated_keys() -> list[str]:
    """All keys that some method does not read, sorted."""
    stated = method_keys().values()
    return sorted(READ_BY_NONE.union(*(each.keys | each.ignores for each in stated)))


def unused_key_line(key: str, value: Any, methods: Collection[str]) -> str:
    """The error line for a key that no method in use reads."""
    used = " or ".join(f"`{name}`" for name in methods)
    owners = ", ".join(f"`{name}`" for name in methods_that_read(key))
    repair = (
        f"it belongs to {owners}: remove it, or choose such a method"
        if owners
        else "no method of a trial reads it: remove it"
    )
    return (
        f"`{key}` must be left out where `pruning.method` is {used}, which does not read it, but"
        f" is {value} instead; {repair}"
    )
