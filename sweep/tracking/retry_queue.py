"""Calls to MLflow that wait until they succeed, in order. Knows nothing of MLflow itself.

A call stays first in the queue until it succeeds, however long that takes. A newer call of the same
topic replaces an older one. Reports are never replaced: those of one trial are sent together, and
reports beyond a limit are left to the ledger.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from core.report import Report

logger = logging.getLogger(__name__)

MAX_REPORTS = 20_000
"""Reports that wait at most: some twenty megabytes, hours of a large sweep."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds without a try after a failure; doubled after each further failure."""
PATIENCE_SECONDS = 0.5
"""Between two tries of `deliver_all`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimedReport:
    """A report and the time at which it arrived."""

    milliseconds: int
    report: Report


@dataclass(kw_only=True, slots=True)
class QueuedCall:
    """A call that waits, with the trial that it is about."""

    deliver: Callable[[], object]
    about: int | None
    topic: str = ""
    reports: list[TimedReport] = field(default_factory=list)


class RetryQueue:
    """Calls in order; the first is repeated until it succeeds or is refused.

    Args:
        is_refusal: whether an error means that the call will never be accepted.
        max_reports: the most reports that may wait.
    """

    def __init__(
        self, is_refusal: Callable[[Exception], bool], max_reports: int = MAX_REPORTS
    ) -> None:
        self.is_unreachable = False
        """Whether the last call failed."""
        self._is_refusal = is_refusal
        self._max_reports = max_reports
        self._calls: dict[int, QueuedCall] = {}
        self._num_added = 0
        self._num_reports = 0
        self._topics: dict[str, int] = {}
        self._open: dict[int | None, QueuedCall] = {}
        """The last call with reports of each trial, to which more can be added."""
        self._retry_at = 0.0
        self._pause = FIRST_PAUSE
        self._refusals: set[str] = set()

    def __len__(self) -> int:
        return len(self._calls)

    # ---- adding ----

    def put(self, deliver: Callable[[], object], *, about: int | None, topic: str = "") -> None:
        """Add a call.

        Args:
            deliver: makes the call; making it twice must have the same effect as once.
            about: the trial that it is about; None is the sweep itself.
            topic: replaces a waiting call of the same topic; an empty one replaces nothing.
        """
        # The newer call goes to the end, so that it also comes after what was put since the older
        # one. A front that was drawn ten times during an outage is sent once.
        if topic in self._topics:
            del self._calls[self._topics.pop(topic)]
        self._open.pop(about, None)  # later reports must come after this call
        self._append(QueuedCall(deliver=deliver, about=about, topic=topic))

    def put_reports(
        self,
        reports: Sequence[TimedReport],
        deliver: Callable[[Sequence[TimedReport]], None],
        *,
        about: int | None,
    ) -> bool:
        """Add reports of a trial to those that wait; returns False if there is no room.

        Args:
            reports: in order.
            deliver: sends all reports of one call.
            about: the trial; None is the teacher.
        """
        if self._num_reports + len(reports) > self._max_reports:
            return False
        call = self._open.get(about)
        if call is None:
            # The call and the lambda share this list: reports that come while the call waits are
            # sent with it, instead of in a request each.
            waiting: list[TimedReport] = []
            call = QueuedCall(deliver=lambda: deliver(waiting), about=about, reports=waiting)
            self._append(call)
            self._open[about] = call
        call.reports.extend(reports)
        self._num_reports += len(reports)
        return True

    def _append(self, call: QueuedCall) -> None:
        self._calls[self._num_added] = call
        if call.topic:
            self._topics[call.topic] = self._num_added
        self._num_added += 1

    # ---- delivering ----

    def deliver(self) -> None:
        """Make the waiting calls, unless one failed a moment ago; never raises."""
        if time.monotonic() >= self._retry_at:
            self._deliver()

    def deliver_all(self, seconds: float) -> bool:
        """Try to make all waiting calls within so many seconds; returns whether that succeeded."""
        deadline = time.monotonic() + seconds
        while not self._deliver() and time.monotonic() < deadline:
            time.sleep(PATIENCE_SECONDS)
        return not self._calls

    def _deliver(self) -> bool:
        """Make calls until one fails; returns whether the queue is empty."""
        while self._calls:
            # A dict in order of insertion serves as the queue, because a call that is replaced is
            # taken out of its middle. The call is removed only after it was made, so that none is
            # lost.
            index, call = next(iter(self._calls.items()))
            try:
                call.deliver()
            except Exception as error:  # noqa: BLE001  # one bad call must not block the others
                if not self._is_refusal(error):
                    self._note_failure(error)
                    return False
                self._note_refusal(error)
            self._remove(index, call)
        self._note_success()
        return True

    def _remove(self, index: int, call: QueuedCall) -> None:
        del self._calls[index]
        self._num_reports -= len(call.reports)
        if call.topic:
            del self._topics[call.topic]
        if self._open.get(call.about) is call:
            del self._open[call.about]

    def _note_failure(self, error: Exception) -> None:
        self._retry_at = time.monotonic() + self._pause
        # Tries after 1, 2, 4, 8, 16, 30, 30, ... seconds; one warning for the whole outage.
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        if not self.is_unreachable:
            logger.warning(
                "MLflow cannot be reached; its updates wait until it can: %s", first_line(error)
            )
        self.is_unreachable = True

    def _note_success(self) -> None:
        if self.is_unreachable:
            logger.warning("MLflow can be reached again and has received all updates.")
        self.is_unreachable = False
        self._retry_at, self._pause = 0.0, FIRST_PAUSE

    def _note_refusal(self, error: Exception) -> None:
        line = first_line(error)
        if line not in self._refusals:
            logger.warning("MLflow refused an update; the sweep goes on: %s", line)
        self._refusals.add(line)


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the name of its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
