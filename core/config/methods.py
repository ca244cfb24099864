"""The registry of pruning methods: their names, their settings, and the keys that each one reads.

The folder core/methods is the registry. A method's file imports torch, for which a command that
only reads a configuration must not wait. So this module takes no more of a file than its class
`Settings` and the imports that the class names.
"""

import ast
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from core.config.settings import MethodSettings

METHODS_FOLDER = Path(__file__).parents[1] / "methods"
BETWEEN_CLASSES = "\n\n\n"
"""Two empty lines, which end a class."""
ADAPT_KEYS = frozenset({"boosting.task_weight"})
"""Keys for `conformer-sweep adapt` alone: in a trial, `distillation.task_weight` is the weight."""


def method_names() -> list[str]:
    """Returns the names of all pruning methods, sorted; no method is imported."""
    return sorted(p.stem for p in METHODS_FOLDER.glob("*.py") if not p.stem.startswith("_"))


@cache
def settings_class(method: str) -> type[MethodSettings]:
    """Returns the class `Settings` of a method's file, or `MethodSettings` if it has none.

    The class is not the one that an import of the file makes, though made of the same lines:
    `PruningConfig.settings` turns values of one into values of the other.
    """
    path = METHODS_FOLDER / f"{method}.py"
    # What comes behind the class is not parsed: every command that reads a configuration would wait
    # for it.
    head, line, rest = path.read_text(encoding="utf-8").partition("\nclass Settings")
    if not line:
        return MethodSettings
    body = ast.parse(f"{head}{line}{rest.partition(BETWEEN_CLASSES)[0]}").body
    (settings_node,) = (n for n in body if isinstance(n, ast.ClassDef) and n.name == "Settings")
    # Names that the class reads: for `order_share: float = Field(0.25)` these are `float` and
    # `Field`.
    nodes = [node for node in ast.walk(settings_node) if isinstance(node, ast.Name)]
    names = {node.id for node in nodes if isinstance(node.ctx, ast.Load)}
    imports = [statement for node in body if (statement := _import_of(names, node)) is not None]
    namespace: dict[str, Any] = {"__name__": f"core.methods.{method}"}
    module = ast.Module(body=[*imports, settings_node], type_ignores=[])
    exec(compile(module, str(path), "exec"), namespace)  # noqa: S102  # a file of this program
    settings: type[MethodSettings] = namespace["Settings"]
    settings.__module__, settings.__qualname__ = __name__, method  # where `__getattr__` has it
    return settings


def __getattr__(name: str) -> type[MethodSettings]:
    """Lets pickle look up a method's class of settings, which has the method's name here."""
    if name.startswith("_") or name not in method_names():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return settings_class(name)


def _import_of(names: Collection[str], node: ast.stmt) -> ast.stmt | None:
    """Returns an import statement with no more than these names; None if nothing remains."""
    if not isinstance(node, ast.Import | ast.ImportFrom):
        return None
    aliases = [alias for alias in node.names if (alias.asname or alias.name) in names]
    if not aliases:
        return None
    new = (
        ast.Import(names=aliases)
        if isinstance(node, ast.Import)
        else ast.ImportFrom(module=node.module, names=aliases, level=node.level)
    )
    return ast.copy_location(new, node)


@cache
def settings_tables() -> dict[str, type[MethodSettings]]:
    """Returns the settings of each method that has a table of its own."""
    classes = {name: settings_class(name) for name in method_names()}
    return {name: settings for name, settings in classes.items() if settings.model_fields}


def owner_of(key: str) -> str | None:
    """Returns the method whose table holds a key such as `pruning.l0.lambda_lr`, if one does."""
    # `pruning.l0.lambda_lr` belongs to `l0`; `pruning.steps` and `tuning.steps` belong to no
    # method.
    section, _, rest = key.partition(".")
    name, dot, _ = rest.partition(".")
    return name if section == "pruning" and dot and name in settings_tables() else None


def methods_that_read(key: str) -> list[str]:
    """Returns the methods that read a key, by its dotted name under `[trial]`, sorted."""
    if key in ADAPT_KEYS:
        return []
    owner = owner_of(key)
    if owner is not None:
        return [owner]
    names = method_names()
    readers = [name for name in names if key in settings_class(name).reads]
    # A key that some methods name in `reads` is theirs alone; any other belongs to all that do not
    # ignore it.
    return readers or [name for name in names if key not in settings_class(name).ignores]


def methods_with_setting(setting: str) -> list[str]:
    """Returns the methods in whose table a setting stands, sorted."""
    return [name for name, table in settings_tables().items() if setting in table.model_fields]


def restricted_keys() -> list[str]:
    """Returns all keys outside the methods' tables that some method does not read, sorted."""
    classes = [settings_class(name) for name in method_names()]
    return sorted(ADAPT_KEYS.union(*({*settings.reads, *settings.ignores} for settings in classes)))


def unused_keys(keys: Iterable[str], methods: Collection[str]) -> list[str]:
    """Returns those of the keys that none of the methods reads, in their order."""
    return [key for key in keys if not set(methods).intersection(methods_that_read(key))]


def unused_key_line(key: str, value: Any, methods: Collection[str]) -> str:
    """Returns the error line for a key that no method in use reads."""
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


def misplaced_key_line(setting: str, methods: Collection[str]) -> str:
    """Returns the error line for a method's own setting that stands in `[trial.pruning]`.

    Args:
        setting: name of the key, such as `smallest`.
        methods: the methods in use; the repair names their tables where they have the setting.
    """
    owners = methods_with_setting(setting)
    used = [name for name in owners if name in methods]
    joint = " and " if used else " or "
    tables = joint.join(f"[trial.pruning.{name}]" for name in used or owners)
    choose = "" if used else f", and choose {'that method' if len(owners) == 1 else 'its method'}"
    return (
        f"`pruning.{setting}` must stand in the table of its method, but stands in"
        f" [trial.pruning] instead; write it in {tables}{choose}"
    )
