"""The words of the code, in figures: names, docstrings and sizes."""

import ast
import re
import statistics
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for name in ("core", "sweep") for path in (ROOT / name).rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in MODULES}
FUNCTIONS = [
    node
    for tree in TREES.values()
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
]
PRIVATE_WORDS = {
    "told",
    "found",
    "heard",
    "said",
    "kept",
    "place",
    "beside",
    "chance",
    "known",
    "given",
    "wanted",
    "gone",
    "left",
    "each",
}
IRREGULAR = {
    "told",
    "found",
    "heard",
    "said",
    "kept",
    "known",
    "given",
    "gone",
    "left",
    "made",
    "seen",
    "shown",
    "drawn",
    "cut",
    "met",
    "read",
    "held",
    "taught",
    "brought",
    "written",
    "begun",
    "chosen",
    "fitted",
    "sent",
    "spent",
    "lost",
    "bound",
    "built",
}
NO_PARTICIPLES = {
    "seed",
    "speed",
    "feed",
    "need",
    "embed",
    "shared",
    "indeed",
    "bed",
    "red",
    "hundred",
    "read",
}
GERUNDS_OF_THE_FIELD = {
    "training",
    "pruning",
    "batching",
    "masking",
    "scoring",
    "testing",
    "importing",
    "tracking",
    "streaming",
    "decoding",
    "rounding",
    "padding",
    "timing",
    "early_stopping",
    "long_audio",
}


def is_bare_participle(name):
    last = name.strip("_")
    looks_like_one = last in IRREGULAR or re.fullmatch(r"[a-z]{3,}ed", last) is not None
    return "_" not in last and last not in NO_PARTICIPLES and looks_like_one


def identifiers():
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                yield node.id
            elif isinstance(node, ast.arg):
                yield node.arg
            elif isinstance(node, ast.Attribute):
                yield node.attr


def own_lines(path, function):
    """Lines of a function but those that are comments alone: a reason makes no function longer."""
    lines = path.read_text().splitlines()[function.lineno - 1 : function.end_lineno]
    return sum(not line.strip().startswith("#") for line in lines)


def arguments_of(function):
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return [name for name in names if name not in {"self", "cls"}]


def is_public(function):
    return not function.name.startswith("_")


def test_functions_are_verb_phrases_or_nouns_and_no_bare_participles():
    participles = [f.name for f in FUNCTIONS if is_bare_participle(f.name)]

    assert len(participles) < 0.01 * len(FUNCTIONS), sorted(participles)


def test_modules_are_nouns():
    gerunds = {p.stem for p in MODULES if p.stem.endswith("ing")}

    assert {g for g in gerunds if {g, g.split("_")[-1]}.isdisjoint(GERUNDS_OF_THE_FIELD)} == set()


def test_private_words_are_no_identifiers():
    words = [name.strip("_") for name in identifiers()]
    private = Counter(word for word in words if word in PRIVATE_WORDS)

    assert private.total() < 2e-4 * len(words), private.most_common()


def test_docstrings_open_with_what_the_thing_is_or_does():
    nodes = [
        node
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    ]
    texts = [text for node in nodes if (text := ast.get_docstring(node))]
    odd = [t.splitlines()[0] for t in texts if re.match(r"(What|How|Of|By|So|That|Which)\b", t)]

    assert len(odd) < 0.01 * len(texts), odd


def test_a_folder_has_at_most_20_modules():
    sizes = Counter(p.parent.relative_to(ROOT) for p in MODULES if p.name != "__init__.py")

    assert [(str(folder), n) for folder, n in sizes.items() if n > 20] == []


def test_functions_are_short():
    lines = sorted(
        own_lines(path, node)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )

    assert statistics.median(lines) <= 8
    assert lines[int(0.9 * len(lines))] <= 22
    assert lines[-1] <= 55  # a command with its options


def test_most_public_functions_that_raise_say_so():
    raising = [
        f
        for f in FUNCTIONS
        if is_public(f) and any(isinstance(n, ast.Raise) and n.exc for n in ast.walk(f))
    ]
    documented = [f for f in raising if "Raises:" in (ast.get_docstring(f) or "")]

    assert len(documented) >= 0.87 * len(raising)


def test_long_lists_of_arguments_are_explained():
    long = [f for f in FUNCTIONS if is_public(f) and len(arguments_of(f)) >= 4]
    explained = [f for f in long if "Args:" in (ast.get_docstring(f) or "")]

    assert len(explained) >= 0.6 * len(long), sorted(
        {f.name for f in long} - {f.name for f in explained}
    )
