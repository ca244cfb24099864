"""README.md and docs/results say what the files under benchmarks/results say."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def readme():
    return importlib.import_module("benchmarks.readme")


def test_the_tables_of_every_page_are_those_of_the_results(readme):
    for page in readme.PAGES:
        text = page.read_text()
        assert readme.rendered(text) == text, page.name


def test_every_table_stands_on_a_page(readme):
    text = "".join(page.read_text() for page in readme.PAGES)

    assert [name for name in readme.TABLES if f"<!-- {name} -->" not in text] == []


def test_every_result_says_on_what_machine_it_was_measured():
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        found = json.loads(path.read_text())
        assert {"machine", "versions", "date"} <= set(found["provenance"]), path.name
