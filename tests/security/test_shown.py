"""What others wrote is shown as text, in browsers, pictures, tables, terminals and MLflow."""

import csv
import io
import logging
import shutil
import subprocess
from dataclasses import replace

import pytest
from made_outcomes import make_outcome
from markdown_it import MarkdownIt

from core import bundle
from core.config.trial import CorpusConfig
from core.data.tokenizer import Tokenizer
from core.export.model_card import Exported, card_text
from core.testing import SHAPE, small_model
from sweep.config.distributions import Range
from sweep.console import SafeConsole, make_logs_safe
from sweep.ledger.ledger import Ledger
from sweep.ledger.records import TrialRecord
from sweep.pareto import (
    comparison,
)
from sweep.report import (
    chart_data,
    compare_charts,
    front_files,
    html_chart,
    static_chart,
)
from sweep.report.audio_page import AudioComparison, ComparedModel, Utterance
from sweep.report.audio_page import page as listening_page
from sweep.run.progress import Progress
from sweep.tracking import (
    mlflow_view,
)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


def evil(url, *, leaves=True):
    """Text that would run, fetch or navigate wherever it is taken for markup."""
    return (
        "</script></style></title></text></svg>\"'><script>document.title='owned'</script>"
        f'<img src={url}/img onerror="document.title=\'owned\'"><svg onload="document.title='
        f"'owned'\"><image href='{url}/svg'/></svg><iframe src={url}/frame></iframe>"
        f"<link rel=stylesheet href={url}/css>"
        f"{f'<meta http-equiv=refresh content=0;url={url}/go>' if leaves else ''}"
        f"<a href=\"javascript:document.title='owned'\">x</a> $x$ ${{document.title}}"
    )


def open_in_browser(file):
    """The page as a browser makes it, after all its scripts have run."""
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking")
    process = subprocess.run(  # noqa: S603  (the system's browser, a file that we wrote)
        [CHROMIUM, *flags, "--virtual-time-budget=3000", "--dump-dom", file.as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return process.stdout


def is_owned(document):
    return "<title>owned</title>" in document


def records(text):
    """Two finished trials of a foreign method, with foreign names and values."""
    return [
        TrialRecord(
            number=number,
            state="finished",
            params={text: text, "pruning.method": text, f"{text}2": 0.5},
            outcomes=(make_outcome(0.1 + 0.1 * number, 2.0 - number, method=text),),
            error=text,
        )
        for number in range(2)
    ]


def listening(text):
    return AudioComparison(
        models=(ComparedModel(name="0", wer=0.1, flops_sparsity=0.5),),
        utterances=(
            Utterance(
                id=text, flac=b"x", seconds=1.0, reference=f"a {text}", teacher=text, pruned=(text,)
            ),
        ),
        teacher_wer=0.1,
        wer_name=text,
    )


def front_page(text):
    shown = chart_data.compose(records(text), title=text, teacher_wer=0.05)
    return html_chart.render(shown, rows=front_files.rows(shown.front), audio=listening(text))


def compare(text):
    points = chart_data.compose(records(text), title=text).points
    sides = [comparison.FrontSide(name=f"{text}{i}", points=points) for i in range(2)]
    return comparison.compare(*sides)


def svg(text, folder):
    shown = chart_data.compose(records(text), title=text, teacher_wer=0.05)
    static_chart.draw(shown, svg=folder / "x.svg", png=folder / "x.png")
    return (folder / "x.svg").read_text()


PAGES = {
    "the front": lambda text, _: front_page(text),
    "nothing to hear": lambda text, _: listening_page(
        AudioComparison(unavailable_reason=text), title=text
    ),
    "listening": lambda text, _: listening_page(listening(text), title=text),
    "two fronts": lambda text, _: compare_charts.render(compare(text)),
    "a picture": svg,
}


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("kind", PAGES)
def test_a_page_runs_and_fetches_nothing_that_others_wrote(tmp_path, listener, kind):
    is_picture = kind == "a picture"
    text = "</text></svg><script>document.title='owned'</script>" if is_picture else None
    content = PAGES[kind](text or evil(listener.url), tmp_path)
    file = tmp_path / ("page.svg" if is_picture else "page.html")
    file.write_text(content)

    document = open_in_browser(file)

    assert len(document) > 500
    assert not is_owned(document)
    assert listener.calls == []


@needs_browser
@pytest.mark.slow
def test_the_browser_would_show_it(tmp_path, listener):
    """The test above can fail: as markup, the text takes the page over, and calls."""
    (tmp_path / "page.html").write_text(
        f"<title>x</title><p title='{evil(listener.url, leaves=False)}"
    )

    assert is_owned(open_in_browser(tmp_path / "page.html"))
    assert listener.calls


def test_a_dollar_in_a_name_is_no_mathematics(tmp_path):
    assert "cost $5 of ${x}_$ $" in svg("cost $5 of ${x}_$ $", tmp_path)


def test_a_front_s_table_holds_no_formula():
    text = "=cmd|' /C calc'!A0"
    shown = chart_data.compose(records(text), title=text)

    table = front_files.csv_text(shown.points, shown.params)

    cells = [cell for row in csv.reader(io.StringIO(table)) for cell in row]
    assert f"'{text}" in cells
    assert not any(cell.startswith(("=", "@", "+")) for cell in cells)


def markup(text):
    return MarkdownIt("commonmark").enable("table").render(text)


def test_what_mlflow_is_told_fetches_nothing(listener):
    text = f"![x]({listener.url}/x.png) <img src={listener.url}> [a](javascript:b) | c"
    shown = chart_data.compose(records(text), title=text)

    note = markup(mlflow_view.description(front_files.markdown(shown)))

    assert not any(tag in note for tag in ("<img", "<a ", "<script"))
    assert "![x]" in note


def test_a_model_s_card_fetches_nothing(listener):
    text = f"![x]({listener.url}/x.png)\n\n<img src={listener.url}> [a](javascript:b) | c `"
    report = {
        "outcome": {"method": text, "steps": text, "target_sparsity": 0.5, "resource": text}
        | {"realised_sparsity": 0.5},
        "config": {"seed": text, "corpus": {"name": text, "tokens": text}}
        | {"teacher": {"bundle": text}},
    }
    about = Exported(
        name=text,
        to="onnx",
        params=1,
        source="0" * 64,
        tokenizer="0" * 64,
        files={},
        verified=[text],
        loading="x",
        notes=[],
    )

    html = markup(card_text(about, report))

    assert not any(tag in html for tag in ("<img", "<a ", "<script"))
    assert html.count("![x]") >= 4


# ---- terminals ----

COMMAND = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\x08\u202e[red]x[/red] [link=http://h]y[/link] [/] :cat:"


def is_quiet(text):
    return all(letter.isprintable() or letter == "\n" for letter in text)


@pytest.fixture
def foreign(sweep):
    """The sweep, with texts that would command a terminal wherever a ledger has texts."""
    ledger = Ledger.open(sweep)
    leaves = {"pruning.target_sparsity": Range(low=0.2, high=0.8)}
    for _ in range(2):
        ledger.add({"pruning.target_sparsity": 0.4}, leaves)
    ledger.start(1)
    ledger.finish(1, [make_outcome(0.05, 0.5, method=COMMAND)])
    ledger.start(2)
    ledger.fail(2, COMMAND)
    ledger.close()
    (sweep / "logs").mkdir()
    (sweep / "logs" / "trial-0002.log").write_text(f"Traceback\n{COMMAND}\n")
    return sweep


COMMANDS = [("status",), ("trials",), ("show", "1"), ("show", "2"), ("pareto",)]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_table_commands_no_terminal(foreign, run_command, words):
    command, *rest = words

    code, out, err = run_command(command, foreign, *rest)

    assert code == 0, err
    assert is_quiet(out + err)
    if words in {("show", "2"), ("pareto",)}:
        assert ":cat:" in out
        assert "[link=http://h]" in out


def test_a_sweep_under_way_commands_no_terminal():
    text = io.StringIO()
    for is_live in (False, True):
        console = SafeConsole(file=text, force_terminal=is_live, color_system=None, width=400)
        progress = Progress(COMMAND, 3, console=console)
        progress.show_event(COMMAND)
        progress.show_trial(TrialRecord(number=0, state="failed", error=COMMAND))
        console.print(progress)

    assert "owned" in text.getvalue()
    assert is_quiet(text.getvalue())


def test_a_warning_commands_no_terminal(capsys, monkeypatch):
    make_logs_safe()
    with monkeypatch.context() as here:
        here.setattr(logging.getLogger("sweep"), "propagate", False)  # pytest's own handlers
        logging.getLogger("sweep.x").warning("away: %s", COMMAND)

    err = capsys.readouterr().err
    assert "owned" in err
    assert is_quiet(err)


def test_a_transcript_commands_no_terminal(tmp_path, run_command):
    import numpy as np  # noqa: PLC0415
    import soundfile  # noqa: PLC0415

    words = [f"{COMMAND}{i}" for i in range(10)]
    config = CorpusConfig(tokens="word", vocabulary=20)
    plain = Tokenizer.train([" ".join(f"w{i}" for i in range(10))], config, tmp_path)
    tokenizer = Tokenizer.of_pieces(
        ["<unk>", *(f"\u2581{word}".replace(" ", "_") for word in words)],
        [0.0] * 11,
        unknown="<unk>",
        is_bpe=False,
        special=frozenset(),
    )
    assert plain.size > 2
    model = small_model(shape=replace(SHAPE, vocabulary=tokenizer.size))
    bundle.save(tmp_path / "model", model, tokenizer, {})
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "x.wav", 0.1 * rng.standard_normal(32_000), 16_000)

    for form in ("text", "srt", "vtt", "json"):
        code, out, err = run_command(
            "transcribe", tmp_path / "model", tmp_path / "x.wav", "--format", form
        )
        assert code == 0, err
        assert is_quiet(out + err)
        assert "owned" in out
