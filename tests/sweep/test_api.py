"""The Python interface: its frames are those of the command line, its models transcribe arrays."""

import inspect
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from made_outcomes import make_outcome

from core import bundle
from core.bundle import BundleError
from core.config.base import ConfigError
from core.config.trial import CorpusConfig
from core.data.audio import CorpusError
from core.data.tokenizer import Tokenizer
from core.inference import recognizer as recognizers
from core.report import Report
from core.testing import SHAPE, small_model
from sweep import api
from sweep.api import Sweep, TrialRecognizer
from sweep.cli import app
from sweep.config.distributions import Range
from sweep.config.sweep import create, load, open_config
from sweep.ledger.ledger import Ledger

LEAVES = {"pruning.target_sparsity": Range(low=0.2, high=0.8)}
REPORT = Report(stage="search", step=10, total_steps=40, wer=0.5, gflops=2.5)


@pytest.fixture
def folder(tiny_space, tmp_path):
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
    return folder


@pytest.fixture
def with_model(folder, tmp_path):
    """The same sweep with a model in trial 2 that writes letters for noise."""
    tokenizer = Tokenizer.train(
        ["ONE TWO", "TEN"], CorpusConfig(tokens="char", vocabulary=12), tmp_path
    )
    model = small_model(shape=replace(SHAPE, vocabulary=tokenizer.size))
    with torch.no_grad():
        model.head.bias[:3] -= 20.0
    name = make_outcome(0.1, 1.0).model
    bundle.save(folder / "trials" / "0002" / name, model, tokenizer, {"longest_heard": 2.0})
    return folder


@pytest.fixture
def command_output(monkeypatch, capsys):
    """Runs a command as the shell would, and returns what it printed."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["conformer-sweep", *map(str, words)])
        with pytest.raises(SystemExit):
            app.main()
        return capsys.readouterr().out

    return run


def noise(seconds, rate=16_000):
    samples = 0.1 * np.random.default_rng(0).standard_normal(round(rate * seconds))
    return samples.astype(np.float32)


def rows_of(frame):
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def test_the_trials_are_those_of_the_command_with_the_same_columns(folder, command_output):
    rows = json.loads(command_output("trials", folder, "--json"))
    frame = Sweep.open(folder).trials()

    assert list(frame.columns) == list(rows[0])
    assert rows_of(frame) == rows


def test_the_front_is_that_of_the_command_with_and_without_limits(folder, command_output):
    for options, limits in (((), {}), (("--max-wer", "0.05"), {"max_wer": 0.05})):
        values = json.loads(command_output("pareto", folder, *options, "--json"))
        frame = Sweep.open(str(folder)).front(**limits)

        assert list(frame.columns) == list(values["points"][0])
        assert rows_of(frame) == values["points"]


def test_an_empty_sweep_and_an_empty_front_have_all_columns(folder, tiny_space, tmp_path):
    full = list(Sweep.open(folder).trials().columns)
    new = tmp_path / "new"
    create(new, load(str(tiny_space)), tiny_space.read_text())
    Ledger.create(new).close()

    assert list(Sweep.open(new).trials().columns) == full
    assert list(Sweep.open(folder).front(max_wer=0.001).columns) == full


def test_the_curve_has_a_row_for_each_evaluation(folder):
    ledger = Ledger.open(folder, is_writer=True)
    ledger.start(4)
    ledger.advance(4, REPORT)
    ledger.close()

    curve = Sweep.open(folder).curve(4)

    assert list(curve.columns) == ["step", "wer", "gflops"]
    assert curve.to_numpy().tolist() == [[10, 0.5, 2.5]]
    assert list(Sweep.open(folder).curve(1).columns) == ["step", "wer", "gflops"]


def test_the_status_is_that_of_the_command(folder, command_output):
    assert Sweep.open(folder).status() == json.loads(command_output("status", folder, "--json"))


def test_each_call_shows_the_sweep_as_it_is_now(folder):
    sweep = Sweep.open(folder)
    ledger = Ledger.open(folder, is_writer=True)
    ledger.start(4)
    ledger.fail(4, "another reason")
    ledger.close()

    assert sweep.trials()["error"].tolist()[-1] == "another reason"


def test_reading_a_sweep_imports_neither_torch_nor_ray(folder):
    code = (
        "import sys; from sweep.api import Sweep; assert 'pandas' not in sys.modules\n"
        f"sweep = Sweep.open({str(folder)!r})\n"
        "sweep.trials(), sweep.front(), sweep.curve(1), sweep.status()\n"
        "print(*{'torch', 'ray', 'optuna', 'mlflow', 'plotly'} & set(sys.modules))"
    )
    done = subprocess.run(  # noqa: S603  (our own code)
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("seconds", [0.01, 2.0, 9.0])
def test_an_array_gives_the_text_of_a_file_that_holds_it(with_model, tmp_path, seconds):
    recognizer = Sweep.open(with_model).recognizer(2)
    file = tmp_path / "noise.wav"
    soundfile.write(file, noise(seconds), 16_000, subtype="FLOAT")
    ((_, text),) = recognizers.transcribe(recognizer.bundle, [file])

    assert recognizer.transcribe(noise(seconds), 16_000) == text
    assert bool(text) == (seconds > 1)


def test_an_array_of_another_rate_or_of_integers_is_the_same_speech(with_model, tmp_path):
    recognizer = Sweep.open(with_model).recognizer(2)
    file = tmp_path / "noise.wav"
    integers = (noise(2.0, 8_000) * 32767).astype(np.int16)
    soundfile.write(file, integers, 8_000)
    ((_, text),) = recognizers.transcribe(recognizer.bundle, [file])

    assert recognizer.transcribe(integers, 8_000) == text
    assert recognizer.transcribe(integers / 32768.0, 8_000) == text


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (np.zeros((2, 100)), 16_000, "`samples` must be one channel"),
        (np.zeros(0), 16_000, "`samples` must be one channel .* not empty"),
        (np.zeros(100, dtype=np.int64), 16_000, "`samples` must be floats .* int64 instead"),
        (np.full(100, np.nan), 16_000, "`samples` must be finite"),
        (np.zeros(100), 0, "`sample_rate` must be a positive integer"),
        (np.zeros(100), 0.5, "`sample_rate` must be an integer"),
        (np.zeros(100), -1, "`sample_rate` must be a positive integer"),
    ],
)
def test_an_array_that_is_no_speech_is_refused_by_name(with_model, samples, rate, message):
    with pytest.raises((ConfigError, CorpusError), match=message):
        Sweep.open(with_model).recognizer(2).transcribe(samples, rate)


def test_the_trial_of_a_frame_s_row_is_loaded(with_model):
    sweep = Sweep.open(with_model)
    cheapest = sweep.front().iloc[0]

    recognizer = sweep.recognizer(cheapest["trial"], cheapest["outcome"])

    assert cheapest["trial"] == 2
    assert recognizer.num_params == sum(p.numel() for p in recognizer.bundle.model.parameters())


def test_what_is_not_there_is_refused_by_name(folder, tmp_path):
    sweep = Sweep.open(folder)

    with pytest.raises(ConfigError, match="must hold a sweep"):
        Sweep.open(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"`trial` must be one of the 5"):
        sweep.curve(5)
    with pytest.raises(
        ConfigError, match=r"sweep:3` must be a finished trial, but trial 3 is fail"
    ):
        sweep.recognizer(3)
    with pytest.raises(ConfigError, match=r"sweep:1\.7` must be a finished trial"):
        sweep.export(1, to="bundle", out=tmp_path / "out", outcome=7)
    with pytest.raises(BundleError):
        sweep.recognizer(1)


def test_an_export_holds_the_model_of_the_trial(with_model, tmp_path):
    (file,) = (with_model / "trials" / "0002").rglob("tokenizer.model")
    tokenizer = file.read_bytes()

    done = Sweep.open(with_model).export(2, to="bundle", out=tmp_path / "out")

    assert done.folder == str(tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == tokenizer


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"sweep": {"trails": 3}}, r"^runs: `sweep.trails` .*trials"),
        ({"trial": {"pruning": {"target_sparsity": {"uniform": (0.9, 0.2)}}}}, "lower first"),
    ],
)
def test_a_wrong_table_is_refused_by_name_and_makes_no_folder(tmp_path, table, message):
    with pytest.raises(ConfigError, match=message):
        Sweep.run(table, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_runs_from_a_table_and_continues_with_more_trials(tiny_space, tmp_path):
    import tomllib  # noqa: PLC0415  # of this test alone

    table = tomllib.loads(tiny_space.read_text())
    sweep = Sweep.run(table, tmp_path / "mine", trials=1)
    assert sweep.trials()["state"].tolist() == ["finished"]
    assert open_config(tmp_path / "mine").sweep.name == "mine"

    again = Sweep.run(str(tiny_space), tmp_path / "mine", trials=2)
    assert again.trials()["state"].tolist() == ["finished"] * 2
    assert len(again.curve(1)) > 0
    assert again.resume().status()["finished"] == 2
    assert again.recognizer(1).num_params > 0


def test_every_public_call_documents_its_arguments_its_result_and_its_errors():
    for kind in (Sweep, TrialRecognizer):
        calls = inspect.getmembers(kind, lambda m: inspect.isfunction(m) or inspect.ismethod(m))
        for name, call in calls:
            if name.startswith("_"):
                continue
            text = inspect.getdoc(call)
            arguments = [p for p in inspect.signature(call).parameters if p != "self"]
            assert all(f"\n    {argument}: " in text for argument in arguments), name
            assert all(f"\n{part}:\n" in text for part in ("Returns", "Raises", "Example")), name
    assert set(api.__all__) == {"Sweep", "TrialRecognizer"}


def test_frames_are_frames_of_pandas(folder):
    assert isinstance(Sweep.open(folder).trials(), pd.DataFrame)
