"""The house: names that are ours alone, one home a library, modules that introduce themselves."""

import re
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import typer
from rich.text import Text

from sweep.cli.app import app

ROOT = Path(__file__).parents[1]
PACKAGES = ["core", "sweep", "search_spaces"]
MODULES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
HOMES = {  # one file, or one folder, per outside library
    "ray": {
        "sweep/run/ray_cluster.py",
        "sweep/run/tune_searcher.py",
        "sweep/run/tune_scheduler.py",
        "sweep/run/driver.py",
        "sweep/run/worker.py",
        "sweep/run/nodes.py",
        "sweep/run/rank_actors.py",
        "sweep/run/tune_callback.py",
    },
    "optuna": {
        "sweep/ledger/ledger.py",
        "sweep/ledger/backends.py",
        "sweep/ledger/postgres.py",
        "sweep/search/sampler.py",
    },
    "sqlalchemy": {
        "sweep/ledger/postgres.py",
        "sweep/ledger/backends.py",
        "sweep/tracking/mlflow_client.py",  # MLflow lets its errors through
    },
    "fsspec": {"sweep/storage/object_store.py"},
    "mlflow": {
        "sweep/tracking/mlflow_client.py",
        "sweep/tracking/mlflow_database.py",
        "sweep/tracking/mlflow_registry.py",
    },
    "torchaudio": {"core/data/audio.py", "core/export/usage_snippets.py"},
    "jiwer": {"core/evaluation/wer.py"},
    "onnxruntime": {
        "core/inference/onnx_session.py",
        "core/export/onnx/quantization.py",
        "core/export/usage_snippets.py",  # shows how
    },
    "sherpa_onnx": {"core/export/sherpa_worker.py", "core/export/usage_snippets.py"},
    "transformers": {"core/export/transformers_worker.py", "core/export/usage_snippets.py"},
    "cooper": {"core/pruning/lagrangian.py"},
    "flashlight": {"core/evaluation/beam.py", "core/evaluation/ngram.py"},
    "sentencepiece": {"core/data/tokenizer.py"},
    "pandas": {"sweep/api.py"},
    "yaml": {"core/importers/safe_read.py", "sweep/submit/jobs.py"},
    "jinja2": {"sweep/templates.py"},
    "huggingface_hub": {"core/importers/load.py"},
}


@pytest.mark.parametrize("name", PACKAGES)
def test_import_name_is_ours_alone(name):
    assert Path(import_module(name).__file__).parent == ROOT / name
    assert set(packages_distributions().get(name, [])) <= {"conformer-sweep"}


@pytest.mark.parametrize("library", HOMES)
def test_library_is_imported_only_at_home(library):
    imports_it = re.compile(rf"^\s*(import|from) {library}\b", re.MULTILINE)
    users = {str(p.relative_to(ROOT)) for p in MODULES if imports_it.search(p.read_text())}
    assert users <= HOMES[library]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_module_is_short_and_introduces_itself(path):
    source = path.read_text()
    assert source.count("\n") <= 400
    assert source.startswith(('"""', 'r"""'))


def test_no_test_folder_is_a_package():
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_the_page_of_the_architecture_names_every_module():
    tree = (ROOT / "docs" / "concepts" / "architecture.md").read_text()

    missing = [p.name for p in MODULES if p.name != "__init__.py" and p.name not in tree]

    assert missing == []


FRAGMENTS = {
    *("about", "above", "after", "as", "at", "before", "below", "beside", "by", "for", "from"),
    *("in", "into", "of", "on", "to", "with", "within", "without"),
    *("it", "its", "that", "these", "they", "this", "those", "what", "which", "who", "whose"),
    *("how", "where", "whether", "so", "same", "the same", "also", "again", "another", "more"),
}
"""Opening words of a help string that needs the name of its option to be understood."""


def help_strings():
    """Yields the help of the program, of its commands, arguments and options, by name."""
    program = typer.main.get_command(app)
    yield "conformer-sweep", program.help
    for name, command in [("", program), *program.commands.items()]:
        if name:
            yield name, command.help
        for parameter in command.params:
            yield f"{name} {parameter.opts[0]}", parameter.help


HELP = dict(help_strings())


@pytest.mark.parametrize("name", HELP)
def test_help_string_stands_alone(name):
    text = HELP[name]
    words = re.findall(r"[\w'-]+", text.lower())

    assert len(words) >= 3
    assert words[0] not in FRAGMENTS
    assert " ".join(words[:2]) not in FRAGMENTS
    assert text[0].isupper()
    assert text.endswith(".")
    assert Text.from_markup(text).plain == text  # rich takes `[trial]` for markup and drops it
