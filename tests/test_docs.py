"""What docs/ tells a newcomer to do works as it is printed."""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
METHOD_PAGE = (DOCS / "contributing" / "add-a-method.md").read_text()
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
RUN = re.compile(r"^<!-- test: run -->\n```bash\n(.*?)^```$", re.DOTALL | re.MULTILINE)
THAT_RUN = [page for page in PAGES if RUN.search(page.read_text())]


def name_of(page):
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def commands(generate):
    """The options of each command."""
    found = generate.commands_of(generate.load("cli"))
    return {
        name: {option for each in parameters for option in each.name.split(", ")}
        for name, (_, parameters) in found
    }


@pytest.mark.long
@pytest.mark.slow
def test_a_method_is_added_by_one_file_and_keeps_the_contract(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", METHOD_PAGE, re.DOTALL)
    (file,) = re.findall(r"`(core/methods/\w+\.py)`:", METHOD_PAGE)
    (command,) = re.findall(r"```\npython -m (pytest [^\n]*)\n```", METHOD_PAGE)
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


def test_a_method_is_as_short_as_its_page_says():
    (code,) = re.findall(r"```python\n(.*?)```", METHOD_PAGE, re.DOTALL)

    assert len(code.splitlines()) <= 40


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_that_a_page_names_is_there(page):
    text = page.read_text()
    named = re.findall(
        r"(?<![\w/.-])((?:core|benchmarks|sweep|tests|search_spaces|docs)/[a-z\d_/.-]+\.\w+)", text
    )
    modules = re.findall(r"python -m (benchmarks[.\w]+)", text)
    named += [f"{module.replace('.', '/')}.py" for module in modules]
    made_there = re.findall(r"`(core/methods/\w+\.py)`:", text)

    missing = [name for name in named if name not in made_there and not (ROOT / name).is_file()]

    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_of_a_page_leads_to_a_file_or_a_generated_page(page, generate):
    targets = re.findall(r"\]\((?!https?:)([^)#\s]+)[^)]*\)", BLOCK.sub("", page.read_text()))
    places = [(page.parent / target).resolve() for target in targets]
    made = {(DOCS / path).resolve() for path in generate.pages()}
    made |= {file.with_suffix(".md") for file in (DOCS / "notebooks").glob("*.ipynb")}

    assert [str(place) for place in places if not place.exists() and place not in made] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_and_option_of_a_page_exists(page, commands):
    unknown = []
    for line in _command_lines(page.read_text()):
        words = shlex.split(line, comments=True)
        name, options = words[1], {word.split("=")[0] for word in words if word.startswith("--")}
        if name not in commands:
            unknown.append(name)
        else:
            unknown += [f"{name} {each}" for each in options - commands[name] - {"--help"}]

    assert unknown == []


def _command_lines(text):
    """What a page tells a reader to type, continued lines joined; `COMMAND` stands for any."""
    blocks = [body for kind, body in BLOCK.findall(text) if kind in {"", "bash"}]
    inline = re.findall(r"`(conformer-sweep [^`]+)`", BLOCK.sub("", text))
    lines = [*"\n".join(blocks).replace("\\\n", " ").splitlines(), *inline]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [p for p in parts if re.match(r"conformer-sweep [a-z]", p)]


@pytest.mark.slow
@pytest.mark.parametrize("page", THAT_RUN, ids=name_of)
def test_the_marked_blocks_of_a_page_run(page, tmp_path):
    for block in RUN.findall(page.read_text()):
        found = subprocess.run(  # noqa: S603  (the page's own commands)
            ["/bin/bash", "-e", "-c", block],
            cwd=tmp_path,
            env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

        assert found.returncode == 0, f"{block}\n{found.stdout}{found.stderr}"


def test_the_generated_pages_name_every_command_option_key_and_method(generate, commands):
    pages = generate.pages()
    cli, config = pages["reference/cli.md"], pages["reference/config.md"]

    for command, options in commands.items():
        assert f"## {command}\n" in cli
        assert all(f"`{option}`" in cli for option in options)
    for name, _ in generate.program_options(generate.load("cli")):
        assert f"| `{name}` |" in cli
    for model, table in _tables(generate):
        assert f"## [{table}]" in config
        for key, field in model.model_fields.items():
            is_table = generate.section_of(field.annotation) is not None
            assert is_table or f"### {key} {{ #{table.replace('.', '-')}-{key} }}" in config
    for name in generate.load("method names")():
        assert pages[f"methods/{name}.md"].startswith(f"# {name}\n")


def _tables(generate):
    sweep, waiting = generate.load("sweep"), [(generate.load("trial"), "trial")]
    waiting += [
        (section, name)
        for name, field in sweep.model_fields.items()
        if (section := generate.section_of(field.annotation)) is not None
    ]
    while waiting:
        model, table = waiting.pop()
        yield model, table
        waiting += [
            (section, f"{table}.{key}")
            for key, field in model.model_fields.items()
            if (section := generate.section_of(field.annotation)) is not None
        ]


def test_every_key_of_the_configuration_says_what_it_means(generate):
    for model, table in _tables(generate):
        silent = [key for key in model.model_fields if not generate.field_texts(model).get(key)]
        tables = {k for k, f in model.model_fields.items() if generate.section_of(f.annotation)}
        assert set(silent) <= tables, table


def test_the_table_of_methods_names_every_method(generate):
    index = (DOCS / "methods" / "index.md").read_text()

    assert [n for n in generate.load("method names")() if f"[`{n}`]({n}.md)" not in index] == []


def test_the_readme_is_short_and_begins_with_the_two_commands():
    text = (ROOT / "README.md").read_text()
    setup = "python3 -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt -e "

    assert len(text.splitlines()) <= 150
    assert f'\n{setup}".[demo]" && conformer-sweep demo\n' in text
    assert f'\n{setup}".[demo,test]" && pytest\n' in text


@pytest.mark.parametrize("page", sorted((DOCS / "results").glob("*.md")), ids=name_of)
def test_every_page_of_results_says_how_it_was_made(page):
    text = page.read_text()

    assert re.search(r"python -m benchmarks\.\w+\.\w+", text)
    assert re.search(r"^\*Measured .+\*$", text, re.MULTILINE)
    assert "#the-data)" in text or "## The data" in text


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "glossary.md"], ids=name_of)
def test_a_page_speaks_the_words_of_the_field(page):
    prose = re.sub(r"`[^`]*`|<!--.*?-->", "", BLOCK.sub("", page.read_text()))
    private = r"\b(hears?|heard|whoever|recognisers?|normalis\w+|quantis\w+)\b"

    assert re.findall(private, prose) == []


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
    ours = {
        "core/testing.py",
        "core/export/usage_snippets.py",
        "sweep/api.py",
    }  # made-up models; a text to be copied; an example

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
