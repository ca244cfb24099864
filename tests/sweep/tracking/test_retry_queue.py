"""Calls to MLflow are made in order, once, and none blocks the others."""

import pytest

from core.report import Report
from sweep.tracking import retry_queue
from sweep.tracking.retry_queue import RetryQueue, TimedReport


class AwayError(OSError):
    """MLflow is not there."""


@pytest.fixture
def line(monkeypatch):
    """A line to MLflow that can be cut, and the calls that it received."""
    monkeypatch.setattr(retry_queue, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(retry_queue, "PATIENCE_SECONDS", 0.01)

    class Line:
        is_cut = False
        received: list[object] = []  # noqa: RUF012  # a fresh class a test

        def send(self, *words):
            if self.is_cut:
                raise AwayError("nobody answers")
            self.received.extend(words)

    return Line()


@pytest.fixture
def queue(line):
    queue = RetryQueue(lambda error: not isinstance(error, AwayError), max_reports=10)

    def put(word, about=None, topic=""):
        queue.put(lambda: line.send(word), about=about, topic=topic)
        queue.deliver()

    def report(step, about=1):
        timed = TimedReport(milliseconds=0, report=Report(stage="tune", step=step, total_steps=99))
        was_taken = queue.put_reports(
            [timed], lambda reports: line.send([t.report.step for t in reports]), about=about
        )
        queue.deliver()
        return was_taken

    queue.call, queue.report = put, report
    return queue


def test_a_call_is_made_at_once(line, queue):
    queue.call("a")

    assert line.received == ["a"]
    assert len(queue) == 0


def test_failed_calls_are_repeated_in_order_once_the_line_is_back(line, queue):
    line.is_cut = True
    for word in "abc":
        queue.call(word)
    assert (line.received, queue.is_unreachable) == ([], True)

    line.is_cut = False
    queue.call("d")

    assert (line.received, queue.is_unreachable) == ([*"abcd"], False)


def test_the_newest_of_a_topic_replaces_the_older(line, queue):
    line.is_cut = True
    for number in range(1000):
        queue.call("other") if number == 0 else queue.call(number, topic="front")
    assert len(queue) == 2
    line.is_cut = False
    queue.deliver()

    assert line.received == ["other", 999]


def test_the_reports_of_a_trial_travel_together(line, queue):
    line.is_cut = True
    for step in (1, 2, 3):
        queue.report(step, about=1)
        queue.report(10 * step, about=2)
    line.is_cut = False
    queue.deliver()

    assert line.received == [[1, 2, 3], [10, 20, 30]]


def test_no_report_overtakes_an_earlier_call_of_its_trial(line, queue):
    line.is_cut = True
    queue.report(1)
    queue.call("end", about=1)
    queue.report(2)
    line.is_cut = False
    queue.deliver()

    assert line.received == [[1], "end", [2]]


def test_reports_beyond_the_limit_find_no_room_until_some_are_sent(line, queue):
    line.is_cut = True
    assert [queue.report(step) for step in range(12)] == [True] * 10 + [False] * 2
    line.is_cut = False
    queue.deliver()

    assert line.received == [list(range(10))]
    assert queue.report(12)


def test_a_refused_call_does_not_block_the_others(line, queue, caplog):
    def refused():
        raise ValueError("no such run")

    for _ in range(3):
        queue.put(refused, about=None)
    queue.call("next")

    assert line.received == ["next"]
    assert sum("no such run" in message for message in caplog.messages) == 1


def test_a_line_that_is_cut_is_left_alone_for_longer_and_longer(monkeypatch):
    monkeypatch.setattr(retry_queue, "FIRST_PAUSE", 1.0)
    queue = RetryQueue(lambda _: False)
    tried = []

    def deliver():
        tried.append(1)
        raise AwayError("nobody answers")

    for _ in range(100):
        queue.put(deliver, about=None)
        queue.deliver()

    assert len(tried) == 1


def test_an_outage_is_logged_at_its_start_and_end(line, queue, caplog):
    line.is_cut = True
    for word in "abc":
        queue.call(word)
    line.is_cut = False
    queue.deliver()

    lost, again = caplog.messages
    assert lost.startswith("MLflow cannot be reached")
    assert again.startswith("MLflow can be reached again")


def test_at_the_end_it_is_tried_for_a_while_and_no_longer(line, queue):
    line.is_cut = True
    queue.call("a")

    assert not queue.deliver_all(0.05)
    line.is_cut = False
    assert queue.deliver_all(0.05)
    assert line.received == ["a"]
