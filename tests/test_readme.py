"""The README says what the files under benchmarks/results say."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def readme():
    sys.path.insert(0, str(ROOT / "benchmarks"))  # where its neighbours lie
    spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.pop(0)
    return module


@pytest.mark.parametrize("page", ["README.md", "docs/large_models.md"])
def test_the_tables_of_a_page_are_those_of_the_results(readme, page):
    text = (ROOT / page).read_text()

    assert ROOT / page in readme.PAGES
    assert readme.rendered(text) == text


def test_every_result_says_on_what_machine_it_was_measured():
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        found = json.loads(path.read_text())
        assert {"machine", "versions", "date"} <= set(found["provenance"]), path.name
