"""What docs/ tells a newcomer to do works as it is printed."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "add_a_method.md").read_text()


@pytest.mark.long
@pytest.mark.slow
def test_a_method_is_added_by_one_file_and_keeps_the_contract(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (file,) = re.findall(r"`(core/methods/\w+\.py)`:", PAGE)
    (command,) = re.findall(r"```\npython -m (pytest [^\n]*)\n```", PAGE)
    for name in ("core", "sweep", "search_spaces", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / file).write_text(code)

    found = subprocess.run(  # noqa: S603  (the page's own command)
        [sys.executable, "-m", *shlex.split(command), "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )

    assert found.returncode == 0, found.stdout + found.stderr
    passed = re.search(r"(\d+) passed", found.stdout)
    assert passed
    assert int(passed[1]) == 6  # nothing was left out, as it yields a curve and is not weak


def test_it_is_as_short_as_the_page_says():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

    assert len(code.splitlines()) <= 40


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page):
    named = re.findall(r"`((?:core|benchmarks|sweep|tests)/[\w/.]+\.\w+)`", page.read_text())

    assert named
    made_there = re.findall(r"`(core/methods/\w+\.py)`:", page.read_text())
    assert all((ROOT / name).is_file() for name in named if name not in made_there)


READS = re.compile(
    r"torch\.load|json\.loads?\(|from_json\(|read_json\(|\bread_text\(|read_bytes\(|tomllib\.loads"
    r"|yaml\.safe_load|tarfile\.open|open_tar\(|zipfile\.ZipFile|np\.load\(|[^_]load_file\("
    r"|sqlite3\.connect|SentencePieceProcessor\(|url_to_fs|from_pretrained|snapshot_download"
    r"|InferenceSession|RDBStorage\(|JournalStorage\(|soundfile\.(info|read|SoundFile)\b"
    r"|download_librispeech|MlflowClient\(|deserialize_item|load_manifest"
)
"""How a file, a database or a server is read."""


def modules_that_read():
    modules = [path for name in ("core", "sweep") for path in (ROOT / name).rglob("*.py")]
    return sorted(str(p.relative_to(ROOT)) for p in modules if READS.search(p.read_text()))


def test_every_module_that_reads_outside_data_is_in_the_list():
    page = (ROOT / "docs" / "security.md").read_text()
    listed = set(re.findall(r"`((?:core|sweep)/[\w/]+\.py)`", page))
    ours = {"core/testing.py", "core/deploy/loading.py"}  # made-up models; a text to be copied

    assert len(modules_that_read()) > 30
    assert set(modules_that_read()) - listed - ours == set()


def test_every_reader_in_the_list_has_a_test_that_is_there():
    page = (ROOT / "docs" / "security.md").read_text()
    table = page.partition("## The readers")[2].partition("### Rows of others")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]

    assert len(rows) > 20
    for row in rows:
        *_, shown_by, _ = row.split("|")
        assert "tests/" in shown_by or shown_by.strip() == "see there", row
