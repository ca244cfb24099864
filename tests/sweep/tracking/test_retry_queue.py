"""What waits for MLflow is told in order, once, and never in anybody's way."""

import pytest

from core.report import Report
from sweep.tracking import retry_queue
from sweep.tracking.retry_queue import RetryQueue, TimedReport


class AwayError(OSError):
    """MLflow is not there."""


@pytest.fixture
def line(monkeypatch):
    """A line to MLflow that can be cut: what was said and heard."""
    monkeypatch.setattr(retry_queue, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(retry_queue, "PATIENCE_SECONDS", 0.01)

    class Line:
        is_cut = False
        heard: list[object] = []  # noqa: RUF012  # a fresh class a test

        def say(self, *words):
            if self.is_cut:
                raise AwayError("nobody answers")
            self.heard.extend(words)

    return Line()


@pytest.fixture
def box(line):
    box = RetryQueue(lambda error: not isinstance(error, AwayError), max_reports=10)

    def put(word, about=None, topic=""):
        box.put(lambda: line.say(word), about=about, topic=topic)
        box.deliver()

    def report(step, about=1):
        told = TimedReport(milliseconds=0, report=Report(stage="tune", step=step, total_steps=99))
        said = box.put_reports(
            [told], lambda held: line.say([each.report.step for each in held]), about=about
        )
        box.deliver()
        return said

    box.said, box.report = put, report
    return box


def test_what_is_put_in_is_told_at_once(line, box):
    box.said("a")

    assert line.heard == ["a"]
    assert len(box) == 0


def test_what_could_not_be_told_is_told_in_order_once_the_line_is_back(line, box):
    line.is_cut = True
    for word in "abc":
        box.said(word)
    assert (line.heard, box.is_unreachable) == ([], True)

    line.is_cut = False
    box.said("d")

    assert (line.heard, box.is_unreachable) == ([*"abcd"], False)


def test_the_newest_of_a_topic_replaces_the_older(line, box):
    line.is_cut = True
    for number in range(1000):
        box.said("other") if number == 0 else box.said(number, topic="front")
    assert len(box) == 2
    line.is_cut = False
    box.deliver()

    assert line.heard == ["other", 999]


def test_the_reports_of_a_trial_travel_together(line, box):
    line.is_cut = True
    for step in (1, 2, 3):
        box.report(step, about=1)
        box.report(10 * step, about=2)
    line.is_cut = False
    box.deliver()

    assert line.heard == [[1, 2, 3], [10, 20, 30]]


def test_no_report_overtakes_what_was_said_of_its_trial_before(line, box):
    line.is_cut = True
    box.report(1)
    box.said("end", about=1)
    box.report(2)
    line.is_cut = False
    box.deliver()

    assert line.heard == [[1], "end", [2]]


def test_reports_beyond_the_bound_find_no_room_until_some_are_told(line, box):
    line.is_cut = True
    assert [box.report(step) for step in range(12)] == [True] * 10 + [False] * 2
    line.is_cut = False
    box.deliver()

    assert line.heard == [list(range(10))]
    assert box.report(12)


def test_a_letter_that_is_refused_does_not_hold_up_the_others(line, box, caplog):
    def refused():
        raise ValueError("no such run")

    for _ in range(3):
        box.put(refused, about=None)
    box.said("next")

    assert line.heard == ["next"]
    assert sum("no such run" in message for message in caplog.messages) == 1


def test_a_line_that_is_cut_is_left_alone_for_longer_and_longer(monkeypatch):
    monkeypatch.setattr(retry_queue, "FIRST_PAUSE", 1.0)
    box = RetryQueue(lambda _: False)
    tried = []

    def deliver():
        tried.append(1)
        raise AwayError("nobody answers")

    for _ in range(100):
        box.put(deliver, about=None)
        box.deliver()

    assert len(tried) == 1


def test_an_outage_is_told_of_twice_at_its_start_and_end(line, box, caplog):
    line.is_cut = True
    for word in "abc":
        box.said(word)
    line.is_cut = False
    box.deliver()

    assert [message[:14] for message in caplog.messages] == ["MLflow is away", "MLflow is back"]


def test_at_the_end_it_is_tried_for_a_while_and_no_longer(line, box):
    line.is_cut = True
    box.said("a")

    assert not box.deliver_all(0.05)
    line.is_cut = False
    assert box.deliver_all(0.05)
    assert line.heard == ["a"]
