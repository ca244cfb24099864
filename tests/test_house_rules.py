"""The house: names that are ours alone, one home a library, modules that introduce themselves."""

import re
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

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
    "yaml": {"core/importers/safe_read.py", "sweep/submit/jobs.py"},
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
