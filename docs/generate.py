"""Makes the pages that come from the code: command line, configuration, and one page a method.

MkDocs calls this file as a hook (`hooks` in mkdocs.yml) while it builds the site. No generated page
is stored in the repository, so none can differ from the code. `python docs/generate.py PAGE` prints
a page, for example `reference/cli.md`.

When modules or names move, only the first section of this file has to follow.
"""

import ast
import functools
import importlib
import inspect
import itertools
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

# ---- what is documented, and where it is ----

ROOT = Path(__file__).parents[1]
PICTURES = "benchmarks/results"

SOURCES = {
    "cli": "sweep.cli.app:app",
    "sweep": "sweep.config.sweep:SweepConfig",
    "trial": "core.config.trial:TrialConfig",
    "pruning": "core.config.pruning:PruningConfig",
    "adaptation": "core.adaptation:AdaptationConfig",
    "method names": "core.config.methods:method_names",
    "method": "core.methods.{name}:METHOD",
    "method base": "core.training.method:Method",
    "methods of a key": "core.config.methods:methods_that_read",
    "settings of a method": "core.config.methods:settings_class",
}
"""`module:attribute` of everything that this file reads."""

SHARED_KEYS = {"resource", "target_sparsity", "further_targets", "utterance_seconds", "axes"}
"""Keys of `[trial.pruning]` that every method obeys; a method's page leaves them out."""

NEEDS = {"audio": "training speech", "labels": "training speech and its transcripts"}
"""Words for what a method's `needs` names."""

YIELDS = {
    "curve": "one model for each of `target_sparsity` and `further_targets`",
    "point": "one model, for `target_sparsity`",
}
"""Words for a method's `yields`."""


def load(source: str, **names: str) -> Any:
    """Returns the object that `SOURCES` names."""
    module, _, attribute = SOURCES[source].format(**names).partition(":")
    return getattr(importlib.import_module(module), attribute)


def pages() -> dict[str, str]:
    """Returns the Markdown of all generated pages, by their paths under docs/."""
    methods = {f"methods/{name}.md": method_page(name) for name in load("method names")()}
    return {"reference/cli.md": cli_page(), "reference/config.md": config_page(), **methods}


# ---- what a model's source says of its fields ----


@functools.cache
def field_texts(model: Any) -> dict[str, str]:
    """Returns the string below each field of a configuration, by the field's name.

    Pydantic would collect them, too, but every time that the program starts.
    """
    texts: dict[str, str] = {}
    for parent in reversed(model.__mro__):
        if issubclass(parent, BaseModel) and parent is not BaseModel:
            for field, below in itertools.pairwise(_class_body(parent)):
                if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                    texts[ast.unparse(field.target)] = inspect.cleandoc(
                        ast.literal_eval(below.value)
                    )
    return texts


def _class_body(model: Any) -> list[ast.stmt]:
    """Returns the statements of a class; that of a method's settings is made of its file."""
    is_own = model.__qualname__ in load("method names")()  # `core.config.methods.l0`, for pickle
    module = f"core.methods.{model.__qualname__}" if is_own else model.__module__
    name = "Settings" if is_own else model.__qualname__
    file = ROOT / f"{module.replace('.', '/')}.py"
    classes = {
        node.name: node.body
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    return classes.get(name, [])  # one that the program makes, of methods' tables, has no text


# ---- types, defaults and texts in words ----

TYPES = {str: "text", bool: "true or false", int: "integer", float: "number", Path: "path"}
BOUNDS = {
    "ge": "at least {}",
    "gt": "more than {}",
    "le": "at most {}",
    "lt": "less than {}",
    "multiple_of": "a multiple of {}",
    "min_length": "at least {} of them",
    "max_length": "at most {} of them",
}


def describe_type(kind: Any) -> str:
    """Returns a type as a user of TOML or of a shell reads it.

    Example: `list[Literal["a", "b"]] | None` is "list of `a` | `b`".
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return ", ".join(filter(None, [describe_type(arguments[0]), describe_bounds(arguments)]))
    if origin is Literal:
        return " | ".join(f"`{value}`" for value in arguments)
    if origin in {typing.Union, types.UnionType}:
        return " | ".join(describe_type(part) for part in arguments if part is not types.NoneType)
    if origin is list:
        return f"list of {describe_type(arguments[0])}"
    if origin is dict:
        return f"table of {describe_type(arguments[0])} = {describe_type(arguments[1])}"
    return "table" if hasattr(kind, "model_fields") else TYPES.get(kind, str(kind))


def describe_bounds(metadata: Iterable[Any]) -> str:
    """Returns pydantic's constraints in words, such as "at least 0, less than 1"."""
    phrases = [
        words.format(f"{value:,}" if isinstance(value, int) else f"{value:g}")
        for constraint in metadata
        for name, words in BOUNDS.items()
        if (value := getattr(constraint, name, None)) is not None
    ]
    return ", ".join(phrases)


def format_default(value: Any) -> str:
    """Returns a default as it is written in TOML, as code."""
    return "not set" if value is None else f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return str(value)


def join_lines(text: str | None) -> str:
    return " ".join((text or "").split())


def escape_cell(text: str) -> str:
    """Returns text that a cell of a Markdown table can hold."""
    return text.replace("|", "\\|")


def escape_products(text: str) -> str:
    """Returns a docstring as Markdown: stars outside of code are products, not emphasis."""
    return "\n".join(
        line if line.startswith("    ") else re.sub(r"(?<!`)\*(?!`)", r"\\*", line)
        for line in text.splitlines()
    )


# ---- the command line ----

CLI_INTRODUCTION = """\
# Command line

This page is generated from the program. `conformer-sweep COMMAND --help` prints the same texts.

A command that takes `--json` prints one JSON value on standard output and nothing else there.
Messages and progress go to standard error. See [exit codes](exit-codes.md)."""

COLORS = """\

## Colors { #colors }

Colors and the live view appear only in a terminal. In a file or a pipe, output is plain text.
Set the environment variable `NO_COLOR` to 1 to have no colors in a terminal either."""

COMPLETION = """\

## Shell completion { #shell-completion }

```bash
conformer-sweep --install-completion
```

This adds completion of commands and options to the shell in which you run it: bash, zsh, fish or
PowerShell. Start a new shell afterwards. `conformer-sweep --show-completion` prints the script
instead, so that you can put it where you like."""


class Parameter(NamedTuple):
    """An argument or an option of a command."""

    name: str
    values: str
    default: str
    help: str
    is_argument: bool
    is_required: bool


def cli_page() -> str:
    app = load("cli")
    commands = dict(commands_of(app))
    overview = [
        f"| [`{name}`](#{name}) | {escape_cell(text)} |" for name, (text, _) in commands.items()
    ]
    sections = [
        line
        for name, (text, parameters) in commands.items()
        for line in ("", *_command_section(name, text, parameters))
    ]
    options = program_options(app)
    completion = [COMPLETION] if "--install-completion" in {name for name, _ in options} else []
    return (
        "\n".join(
            [
                CLI_INTRODUCTION,
                *("", "| Command | What it does |", "|---|---|"),
                *overview,
                *(
                    "",
                    "## Options of the program { #options }",
                    "",
                    "| Option | Meaning |",
                    "|---|---|",
                ),
                *(f"| `{name}` | {escape_cell(text)} |" for name, text in options),
                *completion,
                COLORS,
                *sections,
            ]
        )
        + "\n"
    )


def program_options(app: Any) -> list[tuple[str, str]]:
    """Returns the options that stand before a command, with their help."""
    import typer  # noqa: PLC0415  # of this page alone

    group: Any = typer.main.get_command(app)
    context = group.make_context("conformer-sweep", [], resilient_parsing=True)
    parameters = [*group.params, group.get_help_option(context)]
    return [(", ".join(parameter.opts), join_lines(parameter.help)) for parameter in parameters]


def commands_of(app: Any) -> Iterator[tuple[str, tuple[str, list[Parameter]]]]:
    """Yields each command's name, help and parameters, in the order of `--help`."""
    import typer  # noqa: PLC0415  # of this page alone

    group: Any = typer.main.get_command(app)
    callbacks = {info.name: info.callback for info in app.registered_commands}
    for name, command in group.commands.items():
        hints = typing.get_type_hints(callbacks[name])
        parameters = [_parameter(parameter, hints[parameter.name]) for parameter in command.params]
        yield name, (join_lines(command.help), parameters)


def _parameter(parameter: Any, hint: Any) -> Parameter:
    is_argument = not parameter.opts[0].startswith("-")
    has_default = parameter.default not in {None, "", False} and not callable(parameter.default)
    return Parameter(
        name=parameter.metavar or parameter.opts[0].upper()
        if is_argument
        else ", ".join(parameter.opts),
        values="flag" if hint is bool else describe_type(hint),
        default=f"`{parameter.default}`" if has_default else "",
        help=join_lines(parameter.help),
        is_argument=is_argument,
        is_required=parameter.required,
    )


def _command_section(name: str, text: str, parameters: list[Parameter]) -> list[str]:
    arguments = [parameter for parameter in parameters if parameter.is_argument]
    options = [parameter for parameter in parameters if not parameter.is_argument]
    words = [
        parameter.name if parameter.is_required else f"[{parameter.name}]"
        for parameter in arguments
    ]
    needed = [f"{parameter.name} ..." for parameter in options if parameter.is_required]
    usage = " ".join(["conformer-sweep", name, *words, *needed, "[OPTIONS]"])
    lines = [f"## {name}", "", text, "", "```text", usage, "```"]
    if arguments:
        lines += ["", "| Argument | Values | Meaning |", "|---|---|---|"]
        lines += [
            f"| `{argument.name}` | {escape_cell(argument.values)} | {escape_cell(argument.help)} |"
            for argument in arguments
        ]
    if options:
        lines += ["", "| Option | Values | Default | Meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{option.name}` | {escape_cell(option.values)}"
            f" | {'required' if option.is_required else option.default}"
            f" | {escape_cell(option.help)} |"
            for option in options
        ]
    return lines


# ---- the configuration ----

CONFIG_INTRODUCTION = """\
# Configuration

This page is generated from the program. A search space is one TOML file with the tables below.
Every key has a default. An unknown key, a wrong type or an impossible value is refused by name
before anything runs.

Every key under `[trial]`, except those of `[trial.corpus]`, `[trial.model]`, `[trial.teacher]` and
`[trial.loss]`, takes one value or a distribution:

| Distribution | Meaning |
|---|---|
| `{ uniform = [low, high] }` | a number between two ends, both included |
| `{ log_uniform = [low, high] }` | the same on a logarithmic scale; `low` is above 0 |
| `{ int_uniform = [low, high] }` | an integer between two ends, both included |
| `{ choice = [a, b, ...] }` | one of a list of texts, numbers or booleans |

Relative paths count from the directory in which you start the program."""

ADAPTATION_INTRODUCTION = """\

## For adapt --config

`conformer-sweep adapt --config FILE` reads `[trial]` as above, and these keys. `[memory]` has the
keys of `[trial.corpus]`."""


def config_page() -> str:
    tables = [
        line
        for name, field in load("sweep").model_fields.items()
        if (section := section_of(field.annotation)) is not None
        for line in _table(section, name)
    ]
    tables += _table(load("trial"), "trial")
    adaptation = _keys(load("adaptation"), "adapt")
    lines = [CONFIG_INTRODUCTION, *tables, ADAPTATION_INTRODUCTION, *adaptation]
    return "\n".join(lines) + "\n"


def section_of(annotation: Any) -> Any:
    """Returns the model of a table in the configuration, optional or not; None for a plain key."""
    is_union = typing.get_origin(annotation) in {typing.Union, types.UnionType}
    kinds = typing.get_args(annotation) if is_union else (annotation,)
    return next((k for k in kinds if inspect.isclass(k) and hasattr(k, "model_fields")), None)


def _table(model: Any, name: str) -> Iterator[str]:
    """Yields a TOML table with its keys, then the tables in it."""
    anchor = name.replace(".", "-")
    yield from ("", f"## [{name}] {{ #{anchor} }}", "", join_lines(model.__doc__))
    yield from _keys(model, anchor)
    for key, field in model.model_fields.items():
        if (section := section_of(field.annotation)) is not None:
            yield from _table(section, f"{name}.{key}")


def _keys(model: Any, anchor: str) -> Iterator[str]:
    for key, field in model.model_fields.items():
        if section_of(field.annotation) is None:
            text = join_lines(field_texts(model).get(key))
            yield from ("", f"### {key} {{ #{anchor}-{key} }}", "", text)
            yield from ("", _values_and_default(field) + _methods_of(anchor, key))


def _methods_of(anchor: str, key: str) -> str:
    """Returns which methods read a key, if not all do; nothing in a table of one method."""
    name = f"{anchor.removeprefix('trial-').replace('-', '.')}.{key}"
    methods, names = load("methods of a key")(name), load("method names")()
    if any(anchor == f"trial-pruning-{method}" for method in names):
        return ""
    others = [method for method in names if method not in methods]
    if not others:
        return ""
    is_most = len(methods) > len(others)
    links = ", ".join(
        f"[`{method}`](../methods/{method}.md)" for method in (others if is_most else methods)
    )
    if not links:
        return " · **Methods** none; only `conformer-sweep adapt` reads it"
    return f" · **Methods** {'all except ' * is_most}{links}"


def _values_and_default(field: Any) -> str:
    bounds = describe_bounds(field.metadata)
    values = ", ".join(filter(None, [describe_type(field.annotation), bounds]))
    return f"**Values** {values} · **Default** {format_default(field.default)}"


# ---- the methods ----


def method_page(name: str) -> str:
    method = load("method", name=name)
    title, _, text = (inspect.getdoc(_module_of(method)) or "").partition("\n\n")
    needs = [words for need, words in NEEDS.items() if need in method.needs]
    trains = type(method).search is not load("method base").search
    file = Path(inspect.getfile(type(method))).relative_to(ROOT).as_posix()
    lines = [
        *(f"# {name}", "", escape_products(join_lines(title)), "", "| | |", "|---|---|"),
        f'| Chosen by | `[trial.pruning] method = "{name}"` |',
        f"| Reads while it searches | {needs[-1] if needs else 'no training data'} |",
        f"| Trains while it searches | {'yes' if trains else 'no'} |",
        f"| One trial gives | {YIELDS[method.yields]} |",
        f'| `repair = "auto"` is | `"{method.default_repair}"` |',
        f"| Source | `{file}` |",
        *("", escape_products(text)),
    ]
    lines += _settings_of(name, method)
    return "\n".join([*lines, "", "[All methods](index.md) · [Results](../results/methods.md)", ""])


def _settings_of(name: str, method: Any) -> Iterator[str]:
    """Yields the section of a method's page on its own table and the other keys that it reads."""
    own, shared = load("settings of a method")(name), _shared_keys_of(name, method)
    groups = [
        (f"[trial.pruning.{name}]", "These keys belong to this method.", own, own.model_fields),
        (
            "[trial.pruning]",
            "It also reads these keys, which methods share.",
            load("pruning"),
            shared,
        ),
    ]
    for section in {key.split(".")[0] for key in own.reads}:
        model = load("trial").model_fields[section].annotation
        keys = {k: f for k, f in model.model_fields.items() if f"{section}.{k}" in own.reads}
        groups += [(f"[trial.{section}]", "No other method reads these keys.", model, keys)]
    groups = [group for group in groups if group[-1]]
    yield from ("", "## Settings", "") if groups else ()
    for table, text, model, fields in groups:
        anchor = table.strip("[]").replace(".", "-")
        yield from (f"### {table} {{ #{anchor} }}", "", text, "")
        for key, field in fields.items():
            yield f"[`{key}`](../reference/config.md#{anchor}-{key})"
            yield from (f":   {join_lines(field_texts(model).get(key))}", "")
            yield from (f"    {_values_and_default(field)}", "")


def _shared_keys_of(name: str, method: Any) -> Mapping[str, Any]:
    """Returns the keys of `[trial.pruning]` that the method's file asks for or whose text names it.

    Those that every method obeys, and those that it does not read, are left out.
    """
    tree = ast.parse(inspect.getsource(_module_of(method)))
    asked = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return {
        key: field
        for key, field in load("pruning").model_fields.items()
        if section_of(field.annotation) is None
        and key not in SHARED_KEYS
        and name in load("methods of a key")(f"pruning.{key}")
        and (key in asked or f"`{name}`" in field_texts(load("pruning")).get(key, ""))
    }


def _module_of(method: Any) -> types.ModuleType:
    return sys.modules[type(method).__module__]


# ---- MkDocs' hooks ----


def on_config(config: Any) -> Any:
    """Puts each method into the navigation, so that adding a method is adding one file."""
    for entry in config.nav or []:
        if "Methods" in entry:
            entry["Methods"] += [f"methods/{name}.md" for name in load("method names")()]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated pages and the pictures of the results."""
    from mkdocs.structure.files import File  # noqa: PLC0415  # only MkDocs calls this

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    for picture in sorted((ROOT / PICTURES).glob("*.png")):
        path = f"assets/results/{picture.name}"
        files.append(File.generated(config, path, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Points links of pictures, which are outside docs/ in the repository, to their copies."""
    up = "../" * page.file.src_uri.count("/")
    return markdown.replace(f"../{up}{PICTURES}/", f"{up}assets/results/")


if __name__ == "__main__":
    sys.stdout.write(pages()[sys.argv[1]])
