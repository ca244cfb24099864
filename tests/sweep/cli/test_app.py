import json
import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version

import pytest
from made_outcomes import make_outcome

from core import bundle
from core.config.trial import CorpusConfig, DemoConfig
from core.data.sources import demo
from core.data.tokenizer import Tokenizer
from core.testing import SHAPE, small_model
from sweep.cli import app
from sweep.config.distributions import Choice, Range
from sweep.config.sweep import create, load
from sweep.ledger.files import FILE
from sweep.ledger.ledger import Ledger

LEAVES = {"pruning.target_sparsity": Range(low=0.2, high=0.8)}


@pytest.fixture
def places(sweep, tiny_space, tmp_path):
    """What `{sweep}`, `{space}` and `{tmp}` stand for."""
    return {"sweep": sweep, "space": tiny_space, "tmp": tmp_path}


@pytest.fixture
def sweep(tiny_space, tmp_path):
    """A sweep's directory with a control, two finished trials, a failed and a waiting one."""
    folder = tmp_path / "sweep"
    create(folder, load(str(tiny_space)), tiny_space.read_text())
    ledger = Ledger.create(folder)
    ledger.add({"pruning.method": "dense"}, LEAVES)
    for target in (0.2, 0.8, 0.5, 0.3):
        ledger.add({"pruning.target_sparsity": target}, LEAVES)
    results = [make_outcome(0.04, 3.2, method="dense"), make_outcome(0.05, 2.0)]
    for number, outcome in enumerate([*results, make_outcome(0.09, 1.0)]):
        ledger.start(number)
        ledger.finish(number, [outcome])
    ledger.start(3)
    ledger.fail(3, "why it failed")
    ledger.close()
    (folder / "logs").mkdir()
    (folder / "logs" / "trial-0003.log").write_text("Traceback\nthe last line\n")
    return folder


KEYS = {
    *("trial", "state", "wer", "wer_low", "wer_high", "gflops", "params", "latency_ms"),
    *("target_sparsity", "realised_sparsity", "method", "attempts", "on_front"),
    *("mlflow_run_id", "config", "outcome"),
}


def test_trials_as_json_have_every_key_whatever_their_state(run, sweep):
    code, out, _ = run("trials", sweep, "--json")
    rows = json.loads(out)

    assert code == 0
    assert [row["state"] for row in rows] == [*["finished"] * 3, "failed", "waiting"]
    for row in rows:
        assert set(row) >= KEYS
    assert rows[1]["config"]["pruning"]["target_sparsity"] == 0.2
    assert rows[3]["wer"] is None


def test_a_trial_of_another_method_than_the_first_shows_its_own_table_alone(run, sweep):
    file = sweep / "sweep.toml"
    text = file.read_text()
    choice = 'method = { choice = ["l0", "acip"] }'
    file.write_text(
        text.replace('method = "l0"', choice) + "\n[trial.pruning.acip]\nsmallest = 0.2\n"
    )
    ledger = Ledger.open(sweep)
    leaves = {"pruning.method": Choice(options=("l0", "acip"))}
    for method in ("l0", "acip"):
        ledger.add({"pruning.method": method}, leaves)
    ledger.close()

    rows = json.loads(run("trials", sweep, "--json")[1])

    tables = [{"l0", "acip"} & set(row["config"]["pruning"]) for row in rows[-2:]]
    assert "acip" not in tables[0]
    assert "l0" not in tables[1]


def test_the_front_as_json(run, sweep):
    _, out, _ = run("pareto", sweep, "--json")
    values = json.loads(out)

    assert set(values) == {"dense", "points", "hypervolume"}
    assert values["dense"]["trial"] == 0
    assert [point["trial"] for point in values["points"]] == [2, 1, 0]
    assert 0 < values["hypervolume"] < 1


def test_the_front_within_limits(run, sweep):
    _, out, _ = run("pareto", sweep, "--max-wer", "0.05", "--json")
    assert [point["trial"] for point in json.loads(out)["points"]] == [1, 0]
    _, out, _ = run("pareto", sweep, "--max-gflops", "0.1")
    assert "no finished trial" in out


def test_the_front_is_written_where_it_is_wanted(run, sweep, tmp_path):
    code, _, _ = run("pareto", sweep, "--csv", tmp_path / "a.csv", "--html", tmp_path / "a.html")

    assert code == 0
    assert (tmp_path / "a.csv").read_text().startswith("trial,")
    assert "<html" in (tmp_path / "a.html").read_text()[:1000]


def test_status_counts_what_there_is(run, sweep):
    _, out, _ = run("status", sweep, "--json")
    values = json.loads(out)

    assert (values["finished"], values["failed"], values["waiting"]) == (3, 1, 1)
    assert values["driver"] is None
    _, out, _ = run("status", sweep)
    assert "3 finished, 1 waiting, 1 failed, of 4 trials" in out
    assert "is not running" in out


def test_status_says_when_all_is_done(run, sweep):
    ledger = Ledger.open(sweep)
    ledger.start(4)
    ledger.finish(4, [make_outcome(0.06, 1.5)])
    ledger.close()

    _, out, _ = run("status", sweep)
    assert "is complete" in out


GRID = """
[search]
sampler = "grid"
grid_levels = 2
"""


def test_a_grid_smaller_than_its_budget_is_complete_with_its_last_trial(run, tiny_space, tmp_path):
    """One range at two levels and the control are three trials, whatever was asked for."""
    tiny_space.write_text(tiny_space.read_text().replace("lambda_lr = { log", "# ") + GRID)
    folder = tmp_path / "grid"
    create(folder, load(str(tiny_space)), tiny_space.read_text())
    ledger = Ledger.create(folder)
    for number in range(3):
        assert "is not running" in run("status", folder)[1]
        ledger.add({"pruning.target_sparsity": 0.2}, LEAVES)
        ledger.start(number)
        ledger.finish(number, [make_outcome()])
    ledger.close()

    assert "is complete" in run("status", folder)[1]
    assert "3 trials" in run("check", tiny_space)[1]


def test_a_sweep_that_has_spent_its_hours_is_complete(run, tiny_space, tmp_path):
    tiny_space.write_text(tiny_space.read_text().replace("trials = 4", "trials = 4\nhours = 1e-9"))
    folder = tmp_path / "spent"
    create(folder, load(str(tiny_space)), tiny_space.read_text())
    ledger = Ledger.create(folder)
    ledger.add({"pruning.method": "dense"}, LEAVES)
    ledger.start(0)
    ledger.finish(0, [make_outcome()])
    ledger.close()
    assert run("trials", folder)[0] == 0

    assert "is complete" in run("status", folder)[1]


def test_a_failed_trial_shows_why(run, sweep):
    _, out, _ = run("show", sweep, 3)

    assert "why it failed" in out
    assert "the last line" in out
    assert run("trials", sweep)[0] == 0


def test_a_search_space_is_copied_to_be_edited_once(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert run("init", "commands")[0] == 0
    assert load("demo").space.base
    assert (tmp_path / "commands.toml").exists()
    code, _, err = run("init", "commands")
    assert (code, err) == (2, "error: `commands.toml` must be new, but exists already.\n")


def test_a_check_says_what_a_sweep_would_cost(run, tiny_space):
    code, out, _ = run("check", tiny_space, "--json")
    values = json.loads(out)

    assert code == 0
    assert values["trials"] == 4
    assert values["params"] > 0
    assert values["seconds_per_step"] > 0
    assert values["removed"] == {"flops": [0.2, 0.8]}


def test_a_check_names_every_budget_of_a_trial(run, tiny_space, tmp_path):
    several = 'resource = "params"\nalso = { flops = { uniform = [0.4, 0.6] }, latency = 0.45 }\n'
    space = tmp_path / "several.toml"
    space.write_text(
        tiny_space.read_text().replace("[trial.pruning]\n", f"[trial.pruning]\n{several}")
    )

    code, out, _ = run("check", space)

    assert code == 0
    (line,) = (line for line in out.splitlines() if line.startswith("to remove: "))
    budgets = line.removeprefix("to remove: ").split(", ")
    assert {"45 % of latency", "40 to 60 % of flops"} < set(budgets)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "dem"], "did you mean `demo`"),
        (["run", "{space}", "--trials", "0"], "`sweep.trials` must be"),
        (["resume", "{tmp}"], "must hold a sweep"),
        (["status", "{tmp}/nowhere"], "must hold a sweep"),
        (["show", "{sweep}", "99"], "`trial` must be one of the 5"),
        (["extend", "{sweep}"], "`extend` must have"),
        (["stop", "{tmp}"], "must hold a sweep"),
        (["transcribe", "{sweep}:3", "x.wav"], "must be a finished trial"),
        (["transcribe", "{tmp}", "x.wav"], "must be a bundle"),
        (["evaluate", "{tmp}", "demo"], "must be a bundle"),
    ],
)
def test_what_a_person_gets_wrong_is_one_line_and_code_2(run, places, words, message):
    ledger = places["sweep"] / FILE
    before = ledger.read_bytes()
    code, out, err = run(*[word.format(**places) for word in words])

    assert code == 2
    assert out == ""
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert ledger.read_bytes() == before


def test_another_space_in_a_sweep_s_directory_is_refused_by_name(run, sweep):
    before = (sweep / FILE).read_bytes()
    code, _, err = run("run", "demo", "--dir", sweep)

    assert code == 2
    assert "`trial.tuning.steps` must stay what it was in this sweep" in err
    assert (sweep / FILE).read_bytes() == before


def test_a_sweep_is_packed_and_unpacked(run, sweep, tmp_path):
    assert run("pack", sweep, tmp_path / "s.tar.gz")[0] == 0
    assert run("unpack", tmp_path / "s.tar.gz", tmp_path / "again")[0] == 0

    assert run("trials", tmp_path / "again", "--json") == run("trials", sweep, "--json")


def test_stopping_a_sweep_that_is_not_running_is_no_error(run, sweep):
    code, out, _ = run("stop", sweep)

    assert code == 0
    assert "is not running" in out


def test_a_damaged_ledger_is_one_line(run, sweep):
    (sweep / FILE).write_bytes(b"garbage")
    code, _, err = run("resume", sweep)

    assert code == 2
    assert "is damaged" in err
    assert (sweep / FILE).read_bytes() == b"garbage"


def test_an_unknown_option_is_refused(run):
    assert run("run", "demo", "--trails", "3")[0] == 2


def test_the_doctor_finds_this_machine_fit(run):
    code, out, _ = run("doctor")

    assert code == 0
    assert "ray" in out


def test_help_waits_for_none_of_the_heavy_libraries():
    code = """
import sys
import sweep.cli.app
heavy = {"torch", "ray", "mlflow", "optuna", "plotly", "matplotlib", "lhotse"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-P", "-c", code], check=True)  # noqa: S603


@pytest.fixture
def adapting(tmp_path):
    """A model, a file for `adapt`, and the command's first words."""
    speech = demo.speak(
        DemoConfig(train_utterances=4, dev_utterances=2, test_utterances=2, commands=["call"]),
        tmp_path / "speech",
    )
    tokenizer = Tokenizer.train(["turn on"], CorpusConfig(tokens="word"), tmp_path / "tokens")
    model = small_model(shape=replace(SHAPE, vocabulary=tokenizer.size))
    bundle.save(tmp_path / "model", model, tokenizer, {})
    file = tmp_path / "adapt.toml"
    file.write_text("[trial.training]\nbatch_seconds = 8.0\n[trial.runtime]\nthreads = 1\n")
    return ["adapt", tmp_path / "model", "--corpus", speech, "--config", file], tmp_path


@pytest.mark.slow
def test_a_model_is_adapted_and_hears_the_new_words(run, adapting):
    words, folder = adapting
    words += ["--memory", folder / "speech", "--memory-share", "1", "--steps", "2", "--json"]
    code, out, err = run(*words, "--out", folder / "out")
    found = json.loads(out)

    assert code == 0
    assert found["new_tokens"] == 3
    assert found["old_after"]["words"] == 4
    assert "speech 1/3" in err
    assert "tune 2/2: WER" in err
    assert run(*words, "--out", folder / "out") == (0, out, "")
    assert run("evaluate", folder / "out", folder / "speech")[0] == 0


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("[trial.tuning]\nstep = 3\n", [], "did you mean `steps`"),
        ("trial = 3\n", [], "`trial` must be a table, but is 3"),
        ("[trial\n", [], "must be TOML"),
        ("", ["--memory", "nowhere"], "`corpus.name` must be"),
        ("", ["--memory-share", "2"], "`memory_share` must be"),
        ("", ["--out", "{folder}/tokens"], "`out` must be a new folder"),
        ("", ["--corpus", "{folder}/tokens"], "holds neither"),
    ],
)
def test_what_adapt_cannot_use_is_one_line_and_code_2(run, adapting, text, words, message):
    start, folder = adapting
    (folder / "adapt.toml").write_text(text)
    given = [word.format(folder=folder) for word in words]
    code, out, err = run(*start, "--out", folder / "out", *given)

    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not list(folder.glob("out*"))


@pytest.mark.parametrize("command", ["status", "trials", "pareto"])
def test_whoever_only_looks_waits_for_no_heavy_library(sweep, command):
    code = """
import atexit, sys
from sweep.cli.app import main
def heavy():
    found = {"torch", "ray", "mlflow", "optuna", "sqlalchemy", "plotly"} & set(sys.modules)
    print(*found, file=sys.stderr)
atexit.register(heavy)
main()
"""
    words = [sys.executable, "-P", "-c", code, command, str(sweep)]
    looked = subprocess.run(words, check=True, capture_output=True, text=True)  # noqa: S603
    assert looked.stderr.split() == []
    assert looked.stdout


PROGRAM = [
    *(sys.executable, "-P", "-c"),
    "import sys; sys.argv[0] = 'conformer-sweep'; from sweep.cli.app import main; main()",
]
ESCAPE = "\x1b["
COLOR = re.compile(r"\x1b\[(?:[\d;]*;)?(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;[\d;]*)?m")


def in_terminal(words, **variables):
    """Returns what a command prints on a terminal of its own."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", **variables}
    with subprocess.Popen(  # noqa: S603
        [*PROGRAM, *words], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        printed = b""
        while chunk := read_terminal(ours):
            printed += chunk
    os.close(ours)
    assert process.returncode == 0, printed
    return printed.decode()


def read_terminal(descriptor):
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux says so when the other end is closed
        return b""


def in_pipe(words, **variables):
    environment = {**os.environ, "TERM": "xterm-256color", **variables}
    done = subprocess.run(  # noqa: S603
        [*PROGRAM, *words], capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", ["--help", "trials"])
def test_colors_appear_only_on_terminals_and_heed_no_color(sweep, command, monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    words = [command] if command == "--help" else [command, str(sweep)]

    assert COLOR.search(in_terminal(words))
    assert not COLOR.search(in_terminal(words, NO_COLOR="1"))
    assert ESCAPE not in in_pipe(words)


def test_the_version_is_that_of_the_package(run):
    assert run("--version") == (0, f"conformer-sweep {version('conformer-sweep')}\n", "")


def test_every_command_has_both_help_options_and_a_group(run):
    commands = app.app.registered_commands

    assert len(commands) == sum(map(len, app.COMMANDS.values()))
    for command in commands:
        assert command.rich_help_panel in app.COMMANDS
        assert run(command.name, "-h") == run(command.name, "--help")
        assert run(command.name, "-h")[0] == 0
    assert all(group in run("-h")[1] for group in app.COMMANDS)


def test_a_shell_completes_commands_and_options():
    def complete(line):
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        variables = {"_CONFORMER_SWEEP_COMPLETE": "complete_bash", **words}
        return set(in_pipe([], **variables).split())

    assert complete("conformer-sweep pa") == {"pack", "pareto"}
    assert "--max-wer" in complete("conformer-sweep pareto --max")
