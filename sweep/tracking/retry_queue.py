"""What MLflow has not heard yet, in the order in which it must hear it. Does not know MLflow.

A letter stays first until it is delivered, however long that takes. What a newer one replaces is
dropped; reports never are: those of one trial travel together, and beyond a bound the ledger
keeps them instead.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from core.report import Report

logger = logging.getLogger(__name__)

MOST_REPORTS = 20_000
"""Held at most: some twenty megabytes, hours of a large sweep."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds that MLflow is left alone after it failed; twice as long each time it fails again."""
PATIENCE_SECONDS = 0.5
"""Between two attempts when there is no later."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimedReport:
    """A report, and when it came."""

    milliseconds: int
    report: Report


@dataclass(kw_only=True, slots=True)
class QueuedCall:
    deliver: Callable[[], object]
    about: int | None
    topic: str = ""
    reports: list[TimedReport] = field(default_factory=list)


class RetryQueue:
    """Letters in order.

    Args:
        is_refusal: whether an error of a delivery says that the letter will never be taken.
        most_reports: held at most.
    """

    def __init__(
        self, is_refusal: Callable[[Exception], bool], most_reports: int = MOST_REPORTS
    ) -> None:
        self.is_away = False
        """Whether the last delivery failed."""
        self._is_refusal = is_refusal
        self._most_reports = most_reports
        self._letters: dict[int, QueuedCall] = {}
        self._num_put = 0
        self._num_reports = 0
        self._topics: dict[str, int] = {}
        self._open: dict[int | None, QueuedCall] = {}
        self._retry_at = 0.0
        self._pause = FIRST_PAUSE
        self._refusals: set[str] = set()

    def __len__(self) -> int:
        return len(self._letters)

    # ---- putting in ----

    def put(self, deliver: Callable[[], object], *, about: int | None, topic: str = "") -> None:
        """One thing to be told.

        Args:
            deliver: tells it; doing so twice must be the same as once.
            about: the trial that it is about; None is the sweep itself.
            topic: what it replaces of all that still waits; an empty one replaces nothing.
        """
        if topic in self._topics:
            del self._letters[self._topics.pop(topic)]
        self._open.pop(about, None)  # what comes later is told later
        self._append(QueuedCall(deliver=deliver, about=about, topic=topic))

    def put_reports(
        self,
        reports: Sequence[TimedReport],
        deliver: Callable[[Sequence[TimedReport]], None],
        *,
        about: int | None,
    ) -> bool:
        """More of a trial's reports, in one letter with those that wait; False if there is no room.

        Args:
            reports: in order.
            deliver: tells all of a letter's.
            about: the trial; None is the teacher.
        """
        if self._num_reports + len(reports) > self._most_reports:
            return False
        letter = self._open.get(about)
        if letter is None:
            held: list[TimedReport] = []
            letter = QueuedCall(deliver=lambda: deliver(held), about=about, reports=held)
            self._append(letter)
            self._open[about] = letter
        letter.reports.extend(reports)
        self._num_reports += len(reports)
        return True

    def _append(self, letter: QueuedCall) -> None:
        self._letters[self._num_put] = letter
        if letter.topic:
            self._topics[letter.topic] = self._num_put
        self._num_put += 1

    # ---- taking out ----

    def deliver(self) -> None:
        """Deliver what waits, unless MLflow was away a moment ago; whatever happens, go on."""
        if time.monotonic() >= self._retry_at:
            self._deliver()

    def deliver_all(self, seconds: float) -> bool:
        """There is no later: try for so long. Returns whether all was delivered."""
        deadline = time.monotonic() + seconds
        while not self._deliver() and time.monotonic() < deadline:
            time.sleep(PATIENCE_SECONDS)
        return not self._letters

    def _deliver(self) -> bool:
        """Whether nothing is left."""
        while self._letters:
            number, letter = next(iter(self._letters.items()))
            try:
                letter.deliver()
            except Exception as error:  # noqa: BLE001  # one bad letter must not hold the others
                if not self._is_refusal(error):
                    self._lost(error)
                    return False
                self._refused(error)
            self._take(number, letter)
        self._found()
        return True

    def _take(self, number: int, letter: QueuedCall) -> None:
        del self._letters[number]
        self._num_reports -= len(letter.reports)
        if letter.topic:
            del self._topics[letter.topic]
        if self._open.get(letter.about) is letter:
            del self._open[letter.about]

    def _lost(self, error: Exception) -> None:
        self._retry_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        if not self.is_away:
            logger.warning(
                "MLflow is away; what it misses is kept until it is back: %s", first_line(error)
            )
        self.is_away = True

    def _found(self) -> None:
        if self.is_away:
            logger.warning("MLflow is back and has heard all that it missed.")
        self.is_away = False
        self._retry_at, self._pause = 0.0, FIRST_PAUSE

    def _refused(self, error: Exception) -> None:
        line = first_line(error)
        if line not in self._refusals:
            logger.warning("MLflow did not take a note, and the sweep goes on: %s", line)
        self._refusals.add(line)


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
