"""The progress of a sweep on the terminal: a live view, or one plain line an event.

The driver calls the methods; the live view of a terminal is drawn by a thread of rich's.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from core.report import Report
from core.safe_text import terminal_line
from sweep.console import SafeConsole
from sweep.ledger.records import State, TrialRecord
from sweep.pareto import front
from sweep.pareto.front import Point
from sweep.wer_labels import wer_name

NUM_EVENTS = 5
"""Last events in the live view."""
MAX_RUNNING = 12
"""Running trials in the live view."""
MAX_FRONT = 8
"""Points of the front in the live view: both ends and the knee, the others evenly."""
OVER: tuple[State, ...] = ("finished", "stopped", "failed")


class Progress:
    """Shows a sweep while the `with` block runs.

    Args:
        title: the sweep's name.
        total_trials: number of trials that the sweep will have.
        records: earlier trials, which are counted but not announced.
        hours: of all trials together, after which no new one starts.
        console: the output; by default standard error.
    """

    def __init__(
        self,
        title: str,
        total_trials: int,
        *,
        records: Iterable[TrialRecord] = (),
        hours: float | None = None,
        console: Console | None = None,
    ) -> None:
        self.title = title
        self.total_trials = total_trials
        self.hours = hours
        self.console = console or SafeConsole(stderr=True)
        self.is_live = self.console.is_terminal and not self.console.is_dumb_terminal
        self._lock = threading.RLock()
        self._began = time.monotonic()
        self._states: dict[int, State] = {}
        self._counts: Counter[State] = Counter()
        self._seconds: dict[int, float] = {}
        self._reports: dict[int, Report] = {}
        self._teacher: Report | None = None
        self._front: list[Point] = []
        self._hypervolume = 0.0
        self._gain = 0.0
        self._events: deque[str] = deque(maxlen=NUM_EVENTS)
        self._pace_from: tuple[float, float] | None = None
        self._live: Live | None = None
        earlier = list(records)
        for record in earlier:
            self._count(record)
        self._widen_front(earlier)

    def __enter__(self) -> Self:
        if self.is_live:
            self._live = Live(self, console=self.console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show_teacher(self, report: Report) -> None:
        """Show a report of the shared preparation: speech, then teacher."""
        with self._lock:
            self._teacher = report
        if not self.is_live:
            self._write_line(f"{report.stage}: {_report_text(report)}")

    def show_trial(self, record: TrialRecord) -> None:
        """Show a trial's record, if its state has changed."""
        with self._lock:
            before = self._states.get(record.number)
            if record.state == before:
                return
            self._count(record)
            if record.state != "running":
                self._reports.pop(record.number, None)
            # The pace counts from the first trial of this run: speech and teacher take time of
            # their own, and trials of earlier runs took none of this run's.
            elif self._pace_from is None:
                self._pace_from = (time.monotonic(), self._share())
            is_wider = self._widen_front([record])
        if before is not None or record.state != "waiting":
            self.show_event(f"trial {record.number}: {_change_text(record)}")
        if is_wider and not self.is_live:
            self._write_line(f"front: {self._front_line()}; {self._count_line()}")

    def show_report(self, number: int, report: Report) -> None:
        """Show a report of a running trial."""
        with self._lock:
            self._reports[number] = report
        if not self.is_live:
            self._write_line(f"trial {number}: {_report_text(report)}")

    def show_event(self, text: str) -> None:
        """Show any other event, a line of text."""
        with self._lock:
            self._events.append(f"{_clock(time.monotonic() - self._began)} {text}")
        if not self.is_live:
            self._write_line(text)

    def __rich__(self) -> RenderableType:
        with self._lock:
            parts: list[RenderableType] = [self._bars()]
            if self._front:
                parts.append(self._best())
            if self._reports:
                parts.append(self._running())
            parts += [Text(terminal_line(line), style="dim", no_wrap=True) for line in self._events]
        return Group(*parts)

    def _bars(self) -> Table:
        bars = Table.grid(padding=(0, 2))
        bars.title, bars.title_justify, bars.title_style = self.title, "left", "bold"
        if self._teacher is not None:
            share = self._teacher.step / max(1, self._teacher.total_steps)
            bars.add_row(self._teacher.stage, _bar(share), _report_text(self._teacher))
        bars.add_row("sweep", _bar(self._share()), self._count_line())
        if self.hours is not None:
            spent = sum(self._seconds.values()) / 3600
            text = f"{spent:.2f} of {self.hours:g} hours of trials spent"
            bars.add_row("budget", _bar(min(1.0, spent / self.hours)), text)
        bars.add_row("time", "", self._time_line())
        bars.add_row("front", "", self._front_line())
        return bars

    def _best(self) -> Table:
        """The points of the front, as many as there is room for."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        wer = wer_name(point.result for point in self._front)
        for column in ("front", "method", f"{wer} (%)", "GFLOPs", "removed (%)"):
            table.add_column(column, justify="left" if column == "method" else "right")
        knee = front.knee(self._front) if len(self._front) > 2 else None
        for point in _thin_front(self._front, knee):
            table.add_row(
                f"{point.name} *" if point == knee else point.name,
                point.result.method,
                _percent(point.wer),
                f"{point.gflops:#.3g}",
                _percent(point.result.flops_sparsity, digits=1),
            )
        return table

    def _running(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        wer = wer_name(self._reports.values())
        for column in ("running", "stage", "step", f"{wer} (%)", "GFLOPs", "removed (%)"):
            table.add_column(column, justify="left" if column == "stage" else "right")
        for number, report in sorted(self._reports.items())[:MAX_RUNNING]:
            table.add_row(
                str(number),
                report.stage,
                f"{report.step}/{report.total_steps}",
                _percent(report.wer),
                f"{report.gflops:#.3g}" if report.gflops is not None else "",
                _percent(report.realised_sparsity, digits=1),
            )
        return table

    def _count_line(self) -> str:
        others: tuple[State, ...] = ("running", "stopped", "failed")
        counts = [f"{self._counts[state]} {state}" for state in others if self._counts[state]]
        return ", ".join([f"{self._counts['finished']} of {self.total_trials} finished", *counts])

    def _front_line(self) -> str:
        size = len(self._front)
        if not size:
            return "no point yet"
        gain = f" (+{self._gain:.3f})" if self._gain > 0 else ""
        return f"{size} point{'s' * (size != 1)}, hypervolume {self._hypervolume:.3f}{gain}"

    def _time_line(self) -> str:
        elapsed = f"{_clock(time.monotonic() - self._began)} elapsed"
        remaining = self._seconds_left()
        return elapsed if remaining is None else f"{elapsed}, about {_clock(remaining)} left"

    def _count(self, record: TrialRecord) -> None:
        before = self._states.get(record.number)
        if before is not None:
            self._counts[before] -= 1
        self._states[record.number] = record.state
        self._counts[record.state] += 1
        self._seconds[record.number] = record.seconds

    def _widen_front(self, records: Iterable[TrialRecord]) -> bool:
        """Add points to the front, in the time of the front's size; returns whether it changed."""
        # A dominated point never returns to the front, so the earlier trials need not be looked at.
        points = front.pareto_front([*self._front, *front.points(records)])
        if points == self._front:
            return False
        hypervolume = front.hypervolume_share(points)
        self._gain = hypervolume - self._hypervolume
        self._front, self._hypervolume = points, hypervolume
        return True

    def _share(self) -> float:
        """The share of the sweep that is done, with running trials counted by their steps."""
        # 10 trials, 3 over, one at step 500 of 1000: (3 + 0.5) / 10 = 0.35.
        over = sum(self._counts[state] for state in OVER)
        parts = sum(report.step / max(1, report.total_steps) for report in self._reports.values())
        return min(1.0, (over + parts) / max(1, self.total_trials))

    def _seconds_left(self) -> float | None:
        """The remaining time by the pace since this run's first trial; None for its start."""
        if self._pace_from is None:
            return None
        began, share_then = self._pace_from
        done = self._share() - share_then
        # Share 0.4 at the start and 0.7 after 600 s: 0.3 of the sweep took 600 s, and the last 0.3
        # takes 600 s more. The first hundredth says too little about the pace.
        if done <= 0.01 or self._share() >= 1:
            return None
        return (time.monotonic() - began) * (1 - self._share()) / done

    def _write_line(self, text: str) -> None:
        """One line without control codes, at once."""
        with self._lock:
            line = f"{_clock(time.monotonic() - self._began)} {terminal_line(text)}\n"
            self.console.file.write(line)
            self.console.file.flush()


def _thin_front(points: list[Point], knee: Point | None) -> list[Point]:
    """At most `MAX_FRONT` points and the knee, cheapest first, evenly over the whole front."""
    if len(points) <= MAX_FRONT:
        return points
    # 20 points: every 19 / 7 = 2.71st, which is 0, 3, 5, 8, 11, 14, 16 and 19.
    step = (len(points) - 1) / (MAX_FRONT - 1)
    indices = {round(row * step) for row in range(MAX_FRONT)}
    return [p for index, p in enumerate(points) if index in indices or p == knee]


def _report_text(report: Report) -> str:
    if report.stage == "speech":
        return f"{report.step} of {report.total_steps} parts ready"
    stage = "" if report.stage == "teacher" else f"{report.stage}, "
    parts = [f"{stage}step {report.step} of {report.total_steps}"]
    if report.wer is not None:
        parts.append(f"{wer_name([report])} {_percent(report.wer)} %")
    if report.gflops is not None:
        parts.append(f"{report.gflops:#.3g} GFLOPs")
    return ", ".join(parts)


def _change_text(record: TrialRecord) -> str:
    """The record's state in words, with its method or results."""
    if record.state == "failed":
        return f"failed: {record.error}" if record.error else "failed"
    if record.state == "waiting":
        return "waiting again"
    if record.state == "running":
        attempt = f", attempt {record.attempts}" if record.attempts > 1 else ""
        target = record.params.get("pruning.target_sparsity")
        aim = f", to remove {_percent(target, digits=0)} %" if target is not None else ""
        method = record.params.get("pruning.method")
        return f"running{attempt}{f' with {method}' if method else ''}{aim}"
    results = [
        f"{wer_name([outcome])} {_percent(outcome.wer)} % at {outcome.gflops:#.3g} GFLOPs"
        f" ({_percent(outcome.flops_sparsity, digits=1)} % removed)"
        for outcome in record.outcomes
    ]
    if not results:
        return record.state
    more = f" and {len(results) - 1} more" if len(results) > 1 else ""
    return f"{record.state}, {results[0]}{more}"


def _bar(share: float) -> ProgressBar:
    return ProgressBar(total=1.0, completed=share, width=28)


def _percent(share: float | None, *, digits: int = 2) -> str:
    return "" if share is None else f"{100 * share:.{digits}f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    # 65 s is 01:05, and 3725 s is 1:02:05.
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
