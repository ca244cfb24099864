"""Whatever a file says: one clear error that names the culprit, exit code 2, nothing changed.

Over a thousand cases, always the same ones; `BAD_INPUT=10 pytest ...` takes ten times as many of
those that are drawn.
"""

import hashlib
import json
import os
import shutil
import sqlite3
import sys
import tomllib
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_outcomes import make_outcome

from core import bundle
from core.config.trial import CorpusConfig
from core.data.tokenizer import Tokenizer
from core.testing import SHAPE, small_model
from core.training import checkpoint
from sweep.cli import app
from sweep.config.distributions import Range
from sweep.config.sweep import create, load
from sweep.ledger.files import FILE
from sweep.ledger.ledger import Ledger

TIMES = int(os.environ.get("BAD_INPUT", "1"))
LEAVES = {"pruning.target_sparsity": Range(low=0.2, high=0.8)}
ROOT = Path(__file__).parents[2]


def cases(number):
    """So many cases, the same in every run."""
    return settings(
        max_examples=number * TIMES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def ran(*words):
    """Exit code, standard output and standard error of a command, run in this process."""
    out, err = StringIO(), StringIO()
    with (
        mock.patch.object(sys, "argv", ["conformer-sweep", *map(str, words)]),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        app.main()
    return ended.value.code or 0, out.getvalue(), err.getvalue()


def tree(folder):
    """What lies in a folder: names, kinds and contents."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder"
    return found


def judge(folder, *words, must_fail=False):
    """The law itself, for one command beside a folder that must not change."""
    before = tree(folder)
    code, out, err = ran(*words)

    assert tree(folder) == before
    assert code in ((2,) if must_fail else (0, 2)), err
    if code == 2:
        assert out == ""
        assert err
        assert all(line.startswith("error: ") for line in err.splitlines()), err
        assert err.isascii() or err.replace("\n", "").isprintable()
        assert len(err) < 20_000
        assert "`" in err or str(folder) in err
    return code


# ---- configs ----

SPACES = [path.read_text() for path in sorted((ROOT / "search_spaces").glob("*.toml"))]
BASE = tomllib.loads(SPACES[1])

scalars = st.one_of(
    st.none().map(lambda _: True),
    st.integers(-(10**40), 10**40),
    st.integers(-3, 3),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["", "demo", "l0", "wer", "../..", "\x00", "\n", "\x1b[31m", "é" * 300, "a/b"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(max_size=8), inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["uniform", "log_uniform", "int_uniform", "choice", "unifrom"]),
            st.lists(inner, max_size=3),
            min_size=1,
            max_size=2,
        ),
    ),
    max_leaves=6,
)


def toml(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value).replace("\\ud", "\\\\ud")  # a half pair is no TOML at all


def places(table, prefix=()):
    for key, value in table.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from places(value, (*prefix, key))


def put(table, place, value):
    *sections, key = place
    table = json.loads(json.dumps(table))
    inner = table
    for section in sections:
        inner = inner[section]
    inner[key] = value
    return table


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A folder for one file at a time."""
    return tmp_path_factory.mktemp("bad")


def judge_space(bench, content, *, must_fail=False):
    path = bench / "space.toml"
    path.write_bytes(content)
    words = ("submit", path, "--to", "ray-job", "--dir", "/x")
    return judge(bench, *words, must_fail=must_fail)


@cases(150)
@given(place=st.sampled_from(list(places(BASE))), value=values)
def test_any_value_at_any_place_of_a_space(bench, place, value):
    table = put(BASE, place, value)
    text = "\n".join(f"{json.dumps(key)} = {toml(each)}" for key, each in table.items())

    judge_space(bench, text.encode("utf-8", "surrogatepass"))


@cases(75)
@given(
    place=st.sampled_from([p for p in places(BASE) if len(p) < 3]),
    key=st.text(min_size=1, max_size=12),
)
def test_any_unknown_key_of_a_space_is_refused(bench, place, key):
    section = place if isinstance(_at(BASE, place), dict) else place[:-1]
    if key in {*_at(BASE, section), *KNOWN}:
        return
    table = put(BASE, (*section, key), 1)
    text = "\n".join(f"{json.dumps(name)} = {toml(each)}" for name, each in table.items())

    judge_space(bench, text.encode("utf-8", "surrogatepass"), must_fail=True)


KNOWN = ("search", "early_stopping", "tracking", "seed", "training", "evaluation", "distillation")


def _at(table, place):
    for key in place:
        table = table[key]
    return table


@cases(75)
@given(
    text=st.sampled_from(SPACES),
    at=st.floats(0, 1),
    gone=st.integers(0, 30),
    new=st.one_of(st.text(max_size=8), st.sampled_from(list("[]{}=\"'#.\n"))),
)
def test_a_slip_anywhere_in_a_space(bench, text, at, gone, new):
    place = int(at * len(text))

    slipped = text[:place] + new + text[place + gone :]
    judge_space(bench, slipped.encode("utf-8", "surrogatepass"))


def test_a_key_of_another_method_is_refused_before_anything_is_made(bench):
    (bench / "x.toml").write_text('[trial.pruning]\nmethod = "l0"\nsmallest = 0.2\nrounds = 3\n')

    for words in (("check",), ("run", "--dir", bench / "new")):
        judge(bench, words[0], bench / "x.toml", *words[1:], must_fail=True)


@cases(30)
@given(st.binary(max_size=200))
def test_bytes_that_are_no_space(bench, content):
    judge_space(bench, content)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 5000 + "]" * 5000,
        "a = " + "9" * 5000,
        "[" + ".".join("a" * 3000) + "]",
        "[sweep]\nname = '" + "x" * 100_000 + "'\ntrials = 0",
        "[trial]\n" + "\n".join(f"k{i} = {i}" for i in range(5000)),
        "[trial.seed]\nchoice = [" + ", ".join(map(str, range(5000))) + ", 'x']",
        "\ufeff[sweep]\ntrials = 3",
        "[sweep]\ntrials = 1979-05-27T07:32:00Z",
    ],
)
def test_what_is_huge_or_odd_is_refused(bench, text):
    judge_space(bench, text.encode(), must_fail=True)


# ---- ledgers ----


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sweep with a control, a finished, a failed, a stopped and a waiting trial."""
    folder = tmp_path_factory.mktemp("whole") / "sweep"
    create(folder, load("demo"), SPACES[1])
    ledger = Ledger.create(folder)
    ledger.add({"pruning.method": "dense"}, LEAVES)
    for target in (0.3, 0.5, 0.7, 0.6):
        ledger.add({"pruning.target_sparsity": target}, LEAVES)
    for number, outcome in enumerate([make_outcome(0.04, 3.2, method="dense"), make_outcome()]):
        ledger.start(number)
        ledger.finish(number, [outcome])
    ledger.start(2)
    ledger.fail(2, "why")
    ledger.start(3)
    ledger.stop(3, "beaten")
    ledger.close()
    (folder / "logs").mkdir()
    (folder / "logs" / "trial-0002.log").write_text("Traceback\nlast\n")
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    """Gives a fresh copy of the whole sweep; the one before is gone."""

    def copied():
        folder = tmp_path / "sweep"
        if folder.exists() or folder.is_symlink():
            shutil.rmtree(folder)
        return Path(shutil.copytree(whole, folder, symlinks=True))

    return copied


LOOKS = [
    ("status",),
    ("trials", "--json"),
    ("trials",),
    ("show", 1),
    ("show", 2),
    ("pareto", "--json"),
    ("pareto",),
]


def look(folder, words, **how):
    command, *rest = words
    return judge(folder, command, folder, *rest, **how)


@cases(60)
@given(
    words=st.sampled_from(LOOKS),
    spots=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=40),
)
def test_bytes_of_a_ledger_flipped(copy, words, spots):
    folder = copy()
    content = bytearray((folder / FILE).read_bytes())
    for place, change in spots:
        content[min(int(place * len(content)), len(content) - 1)] ^= change
    (folder / FILE).write_bytes(content)

    look(folder, words)


@cases(20)
@given(words=st.sampled_from(LOOKS), share=st.floats(0, 0.999))
def test_a_ledger_cut_short(copy, words, share):
    folder = copy()
    content = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(content[: int(share * len(content))])

    look(folder, words, must_fail=True)


TABLES = [
    *("studies", "study_directions", "study_user_attributes", "study_system_attributes", "trials"),
    *("trial_user_attributes", "trial_system_attributes", "trial_params", "trial_values"),
    *("version_info", "alembic_version", "trial_intermediate_values", "trial_heartbeats"),
]


@pytest.mark.parametrize("how", ["DROP TABLE {}", "DELETE FROM {}"])
@pytest.mark.parametrize("table", TABLES)
def test_a_table_of_a_ledger_gone_or_empty(copy, table, how):
    folder = copy()
    with closing(sqlite3.connect(folder / FILE)) as database, database:
        database.execute(how.format(table))

    for words in LOOKS[:3]:
        look(folder, words)


attributes = st.one_of(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text()),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)
        ),
        max_leaves=5,
    ).map(json.dumps),
    st.text(max_size=20),
)


@cases(75)
@given(
    words=st.sampled_from(LOOKS),
    key=st.sampled_from(["trial", "params", "record", "outcomes"]),
    value=attributes,
)
def test_an_attribute_of_a_trial_of_any_shape(copy, words, key, value):
    folder = copy()
    _overwrite(folder, "trial_user_attributes", "value_json", key, value)

    look(folder, words)


@cases(50)
@given(
    words=st.sampled_from(LOOKS),
    key=st.sampled_from(
        ["attempts", "steps", "curve", "seconds", "mlflow_run_id", "error", "adjustments", "new"]
    ),
    value=attributes,
)
def test_a_field_of_a_trial_s_record_of_any_shape(copy, words, key, value):
    folder = copy()
    try:
        told = json.loads(value)
    except ValueError:
        told = value
    with closing(sqlite3.connect(folder / FILE)) as database:
        query = "SELECT value_json FROM trial_user_attributes WHERE key = 'record' LIMIT 1"
        (row,) = database.execute(query).fetchone()
    changed = json.dumps(json.loads(row) | {key: told})
    _overwrite(folder, "trial_user_attributes", "value_json", "record", changed)

    look(folder, words)


@cases(50)
@given(
    words=st.sampled_from(LOOKS),
    key=st.sampled_from([*make_outcome().__dataclass_fields__, "new"]),
    value=attributes,
)
def test_a_field_of_an_outcome_of_any_shape(copy, words, key, value):
    folder = copy()
    try:
        told = json.loads(value)
    except ValueError:
        told = value
    outcome = {f: getattr(make_outcome(), f) for f in make_outcome().__dataclass_fields__}
    changed = json.dumps([outcome | {key: told}])
    _overwrite(folder, "trial_user_attributes", "value_json", "outcomes", changed)

    look(folder, words)


def _overwrite(folder, table, column, key, value):
    with closing(sqlite3.connect(folder / FILE)) as database, database:
        text = value.encode("utf-8", "replace").decode()
        database.execute(f"UPDATE {table} SET {column} = ? WHERE key = ?", (text, key))  # noqa: S608


# ---- directories ----

FILES = [
    "sweep.toml",
    "sweep.original.toml",
    FILE,
    "logs",
    "logs/trial-0002.log",
    "lock",
    "confirm",
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["gone", "folder", "file", "loop", "dangling", "fifo", "binary"])
@pytest.mark.parametrize("words", [*LOOKS, ("pareto", "--compare", "{whole}"), ("stop",)])
def test_a_part_of_a_directory_that_is_not_what_it_should_be(copy, whole, name, kind, words):
    folder = copy()
    path = folder / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    makers = {
        "gone": lambda: None,
        "folder": path.mkdir,
        "file": path.touch,
        "loop": lambda: path.symlink_to(path.name),
        "dangling": lambda: path.symlink_to("nowhere"),
        "fifo": lambda: os.mkfifo(path),
        "binary": lambda: path.write_bytes(bytes(range(256)) * 20),
    }
    makers[kind]()

    look(folder, [str(word).format(whole=whole) for word in words])


@pytest.mark.parametrize("kind", ["gone", "file", "empty", "loop", "long"])
@pytest.mark.parametrize(
    "words",
    [
        *LOOKS,
        *(("resume",), ("extend", "--trials", 1), ("stop",), ("confirm",), ("ui",)),
        ("pack", "/nowhere/x.tar.gz"),
    ],
)
def test_a_directory_that_holds_no_sweep(tmp_path, kind, words):
    folder = tmp_path / "sweep"
    if kind == "file":
        folder.touch()
    elif kind == "empty":
        folder.mkdir()
    elif kind == "loop":
        folder.symlink_to("sweep")
    command, *rest = words
    named = "x" * 5000 if kind == "long" else folder

    judge(tmp_path, command, named, *rest, must_fail=True)


@cases(20)
@given(st.binary(max_size=400))
def test_a_packed_sweep_that_is_none(bench, content):
    shutil.rmtree(bench / "made", ignore_errors=True)
    (bench / "x.tar.gz").write_bytes(content)

    judge(bench, "unpack", bench / "x.tar.gz", bench / "made", must_fail=True)


# ---- checkpoints and bundles ----


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with two checkpoints."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for step in (1, 2):
        checkpoint.save(folder, step, {"step": step, "weights": torch.arange(50.0)})
    return folder


@cases(75)
@given(
    name=st.sampled_from(["state.pt", "sha256"]),
    step=st.integers(1, 2),
    place=st.floats(0, 1),
    new=st.binary(max_size=20),
    is_cut=st.booleans(),
    is_vouched_for=st.booleans(),
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    saved, tmp_path, name, step, place, new, is_cut, is_vouched_for
):
    folder = tmp_path / "checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved, folder)
    path = folder / f"{step:09d}" / name
    content = path.read_bytes()
    at = int(place * len(content))
    path.write_bytes(content[:at] + new + (b"" if is_cut else content[at + len(new) :]))
    if is_vouched_for:  # a checksum of what is there, whatever that is
        state = (folder / f"{step:09d}" / "state.pt").read_bytes()
        (folder / f"{step:09d}" / "sha256").write_text(hashlib.sha256(state).hexdigest())

    found = checkpoint.load_newest(folder)

    assert found["step"] in (1, 2)


@cases(30)
@given(st.binary(max_size=300))
def test_checkpoints_all_damaged_are_one_error(tmp_path, content):
    folder = tmp_path / "checkpoints" / "000000001"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.pt").write_bytes(content)
    (folder / "sha256").write_text(hashlib.sha256(content).hexdigest())

    with pytest.raises(checkpoint.CheckpointError, match=r"`.*checkpoints` must hold"):
        checkpoint.load_newest(folder.parent)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A bundle of an untrained model, and a file of speech for it."""
    folder = tmp_path_factory.mktemp("bundle")
    config = CorpusConfig(tokens="word", vocabulary=20)
    tokenizer = Tokenizer.train(["one two", "two three"], config, folder / "tokens")
    shape = replace(SHAPE, vocabulary=tokenizer.size)
    bundle.save(folder / "model", small_model(shape=shape), tokenizer, {"wer": 0.5})
    soundfile.write(folder / "x.wav", np.zeros(16_000), 16_000)
    return folder


@pytest.fixture
def place(model, tmp_path):
    """Gives a fresh copy of the bundle."""

    def placed():
        shutil.rmtree(tmp_path / "m", ignore_errors=True)
        return Path(shutil.copytree(model / "model", tmp_path / "m"))

    return placed


PARTS = ["shape.json", "model.safetensors", "tokenizer.model", "report.json", "checksums.json"]


def vouch(folder):
    """Checksums of what is there, whatever that is: damage that no checksum finds."""
    sums = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in PARTS
        if name != "checksums.json" and (folder / name).is_file()
    }
    (folder / "checksums.json").write_text(json.dumps(sums))


@cases(30)
@given(
    name=st.sampled_from(PARTS),
    share=st.floats(0, 1),
    new=st.binary(max_size=30),
    is_cut=st.booleans(),
    is_vouched_for=st.booleans(),
)
def test_a_damaged_bundle(model, place, name, share, new, is_cut, is_vouched_for):
    folder = place()
    content = (folder / name).read_bytes()
    at = int(share * len(content))
    damaged = content[:at] + new + (b"" if is_cut else content[at + len(new) :])
    (folder / name).write_bytes(damaged)
    if is_vouched_for and name != "checksums.json":
        vouch(folder)

    # Other weights are weights; a report that is none is not read.
    is_found = damaged != content and not is_vouched_for
    judge(folder, "transcribe", folder, model / "x.wav", must_fail=is_found)


@cases(30)
@given(name=st.sampled_from(["shape.json", "report.json", "checksums.json"]), value=attributes)
def test_a_part_of_a_bundle_that_says_something_else(model, place, name, value):
    folder = place()
    (folder / name).write_bytes(value.encode("utf-8", "replace"))
    if name != "checksums.json":
        vouch(folder)

    is_table = value.lstrip().startswith("{")
    must_fail = name != "report.json" or not is_table
    judge(folder, "transcribe", folder, model / "x.wav", must_fail=must_fail)


@cases(30)
@given(
    key=st.sampled_from([*SHAPE.to_plain(), "format", "new"]),
    value=st.one_of(st.integers(-2, 70_000), st.floats(), st.text(max_size=3), st.none()),
)
def test_a_size_of_a_bundle_s_shape_of_any_kind(model, place, key, value):
    folder = place()
    shape = json.loads((folder / "shape.json").read_text())
    if shape.get(key) == value:
        return
    (folder / "shape.json").write_text(json.dumps(shape | {key: value}))
    vouch(folder)

    judge(folder, "transcribe", folder, model / "x.wav", must_fail=True)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("kind", ["gone", "folder", "loop"])
def test_a_part_of_a_bundle_that_is_no_file(model, place, name, kind):
    folder = place()
    (folder / name).unlink()
    if kind == "folder":
        (folder / name).mkdir()
    if kind == "loop":
        (folder / name).symlink_to(name)

    judge(folder, "transcribe", folder, model / "x.wav", must_fail=True)


@cases(20)
@given(st.binary(max_size=200))
def test_audio_that_is_none(model, bench, content):
    (bench / "x.flac").write_bytes(content)

    judge(bench, "transcribe", model / "model", bench / "x.flac", must_fail=True)
