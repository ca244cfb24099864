"""What is said where there are no transcripts, or no speech."""

import io
from dataclasses import asdict, replace

import pytest
from made_outcomes import make_outcome
from rich.console import Console

from core import bundle
from core.config.base import ConfigError
from core.config.methods import method_names
from core.config.trial import CorpusConfig
from core.data.tokenizer import Tokenizer
from core.one_shot.by_weights import remaining
from core.testing import SHAPE, small_model
from sweep.cli.app import app
from sweep.cli.output.tables import confirmations_table
from sweep.ledger.records import TrialRecord
from sweep.pareto.front import Point
from sweep.search.confirm import summarize_confirmations
from sweep.wer_labels import against_note, methods_line, refuse_methods, refuse_sweep, wer_name


def test_the_methods_that_remain_are_one_line():
    able = remaining()

    assert methods_line(CorpusConfig(), without_speech=able) is None
    none = methods_line(CorpusConfig(name="none"), without_speech=able)
    heard = methods_line(CorpusConfig(labels="teacher"), without_speech=able)

    assert all(name in none for name in able)
    assert not any(f"{name}," in none for name in set(method_names()) - set(able))
    assert "every method remains" in heard
    assert "\n" not in none + heard


def test_a_sweep_without_speech_is_told_what_to_do_instead():
    refuse_sweep(CorpusConfig())
    with pytest.raises(ConfigError, match="`conformer-sweep prune BUNDLE --out FOLDER`"):
        refuse_sweep(CorpusConfig(name="none"))
    with pytest.raises(ConfigError, match="must be one of magnitude without speech, but is `l0`"):
        refuse_methods(["magnitude", "l0"], without_speech=["magnitude"])


def test_a_wer_against_the_teacher_is_never_called_a_wer_alone():
    plain, own = make_outcome(), make_outcome(wer_against="teacher")

    assert wer_name([plain]) == "WER"
    assert wer_name([plain, own]) == "WER against the teacher"
    assert against_note([plain]) is None
    assert "On dev it is the WER against the teacher" in against_note([own])
    assert "On test" in against_note([make_outcome(test_wer_against="teacher")])


@pytest.mark.parametrize(
    ("against", "said"),
    [
        ({}, False),
        ({"wer_against": "teacher"}, "On dev it is the WER against the teacher"),
        ({"test_wer_against": "teacher"}, "On test it is the WER against the teacher"),
    ],
)
def test_what_confirm_prints_says_what_its_rates_are_against(against, said):
    again = TrialRecord(number=0, state="finished", outcomes=(make_outcome(**against),))
    front = [Point(trial=7, outcome=0, result=make_outcome(**against))]
    console = Console(width=100, file=io.StringIO())

    console.print(
        confirmations_table(
            [asdict(row) for row in summarize_confirmations(front, [again], {0: 7})]
        )
    )

    text = console.file.getvalue()
    assert "WER (%)" in text
    assert said in text if said else "teacher" not in text


@pytest.fixture
def asked(tmp_path):
    """Runs a command on a space without speech."""
    from typer.testing import CliRunner  # noqa: PLC0415

    def run(command, pruning):
        config = CorpusConfig(tokens="word", vocabulary=20)
        tokenizer = Tokenizer.train(["one two", "two three"], config, tmp_path / "tokens")
        given = small_model(shape=replace(SHAPE, vocabulary=tokenizer.size))
        bundle.save(tmp_path / "b", given, tokenizer, {})
        space = tmp_path / "bare.toml"
        space.write_text(
            '[trial.corpus]\nname = "none"\n[trial.teacher]\n'
            f'bundle = "{tmp_path / "b"}"\n'
            "[trial.tuning]\nsteps = 0\n[trial.training]\nbatch_seconds = 4.0\n"
            f'[trial.pruning]\nrepair = "none"\nsteps = 0\n{pruning}'
        )
        return CliRunner().invoke(app, [command, str(space)])

    return run


@pytest.mark.slow
def test_check_says_which_methods_remain(asked):
    done = asked("check", 'method = { choice = ["magnitude", "uniform"] }')

    assert done.exit_code == 0
    assert done.output.splitlines()[-1].startswith("without speech: magnitude, ")


def test_check_refuses_a_method_that_cannot_run(asked):
    refused = asked("check", 'method = { choice = ["magnitude", "l0"] }')

    assert isinstance(refused.exception, ConfigError)
    assert "without speech, but is `l0` instead" in str(refused.exception)


def test_run_refuses_before_anything_is_made(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    refused = asked("run", 'method = "magnitude"')

    assert "`conformer-sweep prune BUNDLE --out FOLDER`" in str(refused.exception)
    assert not (tmp_path / "runs").exists()
