"""What the terminal shows of a sweep, read back as text."""

import io
import re
from dataclasses import replace
from unittest import mock

import pytest
from made_outcomes import make_outcome, make_records
from rich.console import Console

from core.report import Report
from sweep.ledger.records import TrialRecord
from sweep.pareto import front
from sweep.run.progress import Progress

RUNNING = TrialRecord(number=3, state="running", params={"pruning.target_sparsity": 0.5})
DONE = replace(RUNNING, state="finished", outcomes=(make_outcome(0.05, 1.6),))
REPORT = Report(
    stage="search", step=200, total_steps=700, wer=0.123, gflops=0.89, realised_sparsity=0.4
)


@pytest.fixture
def plain():
    """A console that is no terminal."""
    return Console(file=io.StringIO(), width=60)


def lines(console):
    """The lines written, without the clock."""
    text = console.file.getvalue()
    assert re.fullmatch(r"(\d\d:\d\d [^\x00-\x1f]*\n)*", text)  # whole lines, no control codes
    return [line.partition(" ")[2] for line in text.splitlines()]


def shown(progress):
    console = Console(width=100, file=io.StringIO())
    console.print(progress)
    return console.file.getvalue()


def test_without_a_terminal_each_event_is_one_plain_line(plain):
    with Progress("demo", 8, console=plain) as progress:
        progress.show_teacher(replace(REPORT, stage="teacher"))
        progress.show_trial(RUNNING)
        progress.show_report(3, REPORT)
        progress.show_trial(DONE)
        progress.show_event("Ray went away, but this line is far longer than the console is wide")

    assert lines(plain) == [
        "teacher: step 200 of 700, WER 12.30 %, 0.890 GFLOPs",
        "trial 3: running, to remove 50 %",
        "trial 3: search, step 200 of 700, WER 12.30 %, 0.890 GFLOPs",
        "trial 3: finished, WER 5.00 % at 1.60 GFLOPs (50.0 % removed)",
        "front: 1 point, hypervolume 0.475 (+0.475); 1 of 8 finished",
        "Ray went away, but this line is far longer than the console is wide",
    ]


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (
            replace(RUNNING, state="failed", error="loss is not finite"),
            "failed: loss is not finite",
        ),
        (replace(RUNNING, state="stopped"), "stopped"),
        (replace(RUNNING, state="waiting"), "waiting again"),
        (replace(DONE, outcomes=DONE.outcomes * 3), "finished, WER 5.00 % at 1.60 GFLOPs"),
    ],
)
def test_each_end_of_a_trial_is_told(plain, record, line):
    progress = Progress("demo", 8, console=plain)
    progress.show_trial(RUNNING)
    progress.show_trial(record)

    assert lines(plain)[1].startswith(f"trial 3: {line}")


def test_a_state_is_news_once(plain):
    progress = Progress("demo", 8, console=plain)
    for _ in range(3):
        progress.show_trial(RUNNING)

    assert len(lines(plain)) == 1


def test_a_beaten_point_is_no_news_of_the_front(plain):
    progress = Progress("demo", 8, console=plain)
    progress.show_trial(DONE)
    progress.show_trial(replace(DONE, number=4, outcomes=(make_outcome(0.5, 1.6),)))

    assert [line for line in lines(plain) if line.startswith("front")] == [
        "front: 1 point, hypervolume 0.475 (+0.475); 1 of 8 finished"
    ]


def test_trials_from_before_are_counted_but_not_told(plain):
    records = make_records(20)

    progress = Progress("demo", 32, records=records, console=plain)

    assert lines(plain) == []
    assert "20 of 32 finished" in shown(progress)
    size = len(front.pareto_front(front.points(records)))
    assert f"{size} points, hypervolume" in shown(progress)


def test_the_front_grown_point_by_point_is_the_front_of_all(plain):
    records = make_records(60)
    progress = Progress("demo", 60, console=plain)
    for record in records:
        progress.show_trial(record)

    points = front.points(records)
    assert progress._front == front.pareto_front(points)
    assert progress._hypervolume == pytest.approx(front.hypervolume_share(points))


def test_the_view_shows_what_runs_and_how_far_it_is(plain):
    progress = Progress("demo", 4, console=plain)
    progress.show_teacher(replace(REPORT, stage="teacher", step=700))
    progress.show_trial(DONE)
    progress.show_trial(replace(RUNNING, number=5))
    progress.show_report(5, REPORT)

    text = shown(progress)
    assert "1 of 4 finished, 1 running" in text
    assert re.search(r"5\s+search\s+200/700\s+12.30\s+0.890\s+40.0", text)
    assert "step 700 of 700" in text


def test_a_running_trial_judged_by_the_teacher_says_so(plain):
    own = replace(REPORT, wer_against="teacher")
    progress = Progress("demo", 4, console=plain)
    progress.show_trial(RUNNING)
    progress.show_report(3, own)

    assert "WER against the teacher 12.30 %" in lines(plain)[-1]
    assert "WER against the teacher (%)" in " ".join(shown(progress).split())


def test_a_trial_that_is_over_runs_no_more(plain):
    progress = Progress("demo", 4, console=plain)
    progress.show_trial(RUNNING)
    progress.show_report(3, REPORT)
    progress.show_trial(DONE)

    assert "200/700" not in shown(progress)


def test_the_time_left_follows_the_pace_of_this_run(plain):
    progress = Progress("demo", 4, records=[DONE], console=plain)
    assert "left" not in shown(progress)

    progress.show_trial(replace(RUNNING, number=5))
    began, share = progress._pace_from
    progress._pace_from = (began - 60, share)
    progress.show_trial(replace(DONE, number=5))

    assert "about 02:00 left" in shown(progress)


def test_a_terminal_gets_a_live_view_that_stays_when_it_ends():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Progress("demo", 4, console=console) as progress:
        progress.show_trial(RUNNING)
        progress.show_trial(DONE)

    text = console.file.getvalue()
    assert "\x1b[" in text
    assert "1 of 4 finished" in text


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    console = Console(file=io.StringIO(), force_terminal=True)
    with Progress("demo", 4, console=console) as progress:
        progress.show_trial(RUNNING)

    assert lines(console) == ["trial 3: running, to remove 50 %"]


def test_news_may_contain_markup_of_rich(plain):
    progress = Progress("demo", 4, console=plain)
    progress.show_trial(replace(RUNNING, state="failed", error="tensor [/bold] of shape [3]"))

    assert "tensor [/bold] of shape [3]" in shown(progress)


def test_the_view_shows_the_budget_and_the_front(plain):
    records = [replace(record, seconds=1800.0) for record in make_records(60)]
    progress = Progress("demo", 80, records=records, hours=60, console=plain)

    text = shown(progress)
    assert "30.00 of 60 hours of trials spent" in text
    points = front.pareto_front(front.points(records))
    assert f"{front.knee(points).name} *" in text
    for point in (points[0], points[-1]):
        assert re.search(rf"{point.name}\s+{point.result.method}\s+{100 * point.wer:.2f}", text)
    assert len(points) > len(text.splitlines()) - 12, "a long front is thinned out"


def test_the_terminal_hears_of_a_front_of_any_size_in_time_that_does_not_grow(plain):
    records = make_records(400)
    progress = Progress("demo", 500, records=records, console=plain)
    seen = []
    whole = front.pareto_front
    for record in make_records(402)[400:]:
        with mock.patch.object(front, "pareto_front", lambda p: seen.append(len(p)) or whole(p)):
            progress.show_trial(record)

    assert max(seen) <= len(whole(front.points(records))) + 2
