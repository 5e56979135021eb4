"""What a run tells the terminal while it goes on, and at its end.

On a terminal there is a bar, refreshed by whoever drives the run (no thread of its own); elsewhere, in a CI's log, a
line now and then. What was not as expected is told in full when it happens.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import rich.console
from rich.text import Text

from conform.report import text
from conform.report.text import Line, Requirements, Tally
from conform.run import events

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

#: Where there is no terminal: a line at least every so many percent, at most one in so many seconds.
_PERCENT = 5
_SECONDS = 2.0
#: Failures told in full, one of each way to fail; the others by one line each. All are in the reports.
_MOST_TOLD = 50
#: In the line of a trial that passed without a remark: it need not be parsed.
_NOTHING_TO_TELL = b'"findings":[],"unverified":[]'


class Console:
    """Tells of one run. It is a reporter (``conform.run.events``): to be called with each event."""

    def __init__(
        self,
        console: rich.console.Console | None = None,
        requirements: Requirements | None = None,
    ) -> None:
        self.console = console or rich.console.Console(highlight=False)
        self._requirements = requirements
        self._header: Mapping[str, Any] = {}
        self._directory = ""
        self._total = 0
        self._tally = Tally()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._told: dict[str, str] = {}
        self._begun = self._last = time.monotonic()

    def __call__(self, event: events.Event) -> None:
        """Tell of *event*."""
        match event:
            case events.RunStarted():
                self.run_started(event.header, event.directory, event.total)
            case events.TrialFinished(result="pass") if _NOTHING_TO_TELL in event.raw:
                self._tally.count(event.id, event.result, event.expected, event.duration)
                self._finished()
            case events.TrialFinished():
                self.trial_finished(event.line)
            case events.Progress():
                self.tick(event.running, event.waiting)
            case events.Notice():
                self.message(event.text)
            case events.RunEnded():
                paths = [event.directory] if event.directory else []
                self.run_ended(event.end.get("exit"), paths, event.duration, len(event.unfinished))

    def run_started(self, header: Mapping[str, Any], directory: str = "", total: int | None = None) -> None:
        """The plan stands."""
        self._header = header
        self._directory = directory
        self._total = len(header.get("planned") or ()) if total is None else total
        self._begun = self._last = time.monotonic()
        self._print(f"{self._total} trials, {(header.get('stack') or {}).get('name', '')}")
        if self.console.is_terminal:
            self._start_bar()

    def _start_bar(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._bar = Progress(
            TextColumn("{task.percentage:>3.0f}%"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[words]}", markup=False),
            console=self.console,
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bar.add_task("", total=self._total, words="")
        self._bar.start()

    def trial_finished(self, line: Line) -> None:
        """A trial has its verdict: *line* is its line of the run file."""
        self._tally.add(line)
        if not line.get("expected", True):
            way = text.way(line)
            like = self._told.setdefault(way, line["id"])
            if like == line["id"] and len(self._told) <= _MOST_TOLD:
                self._print(text.trial(line, self._header, self._requirements, self._directory), self._style(line))
                self._print("")
            else:
                why = f"as {like}" if like != line["id"] else way
                self._print(
                    f"{text.RESULTS.get(line['result'], line['result'])} {text.clean(line['id'])}  {text.clean(why)}",
                    self._style(line),
                )
        self._finished()

    @staticmethod
    def _style(line: Line) -> str:
        return "yellow" if line["result"] in ("flaky", "inconclusive") else "red"

    def _finished(self) -> None:
        if self._bar is None and not self.console.is_terminal:
            done, now = self._tally.total, time.monotonic()
            due = done * 100 // max(self._total, 1) // _PERCENT != (done - 1) * 100 // max(self._total, 1) // _PERCENT
            if (due or done == self._total) and (now - self._last >= _SECONDS or done == self._total):
                self._line(now)

    def _line(self, now: float) -> None:
        self._last = now
        done = self._tally.total
        counts = text.counts_words(self._tally.results)
        self._print(
            f"{done * 100 // max(self._total, 1):3d} %  {done}/{self._total}  {now - self._begun:.0f} s  {counts}"
        )

    def tick(self, running: int = 0, waiting: int = 0) -> None:
        """Time passed: bring the bar up to date; where there is none, say now and then that all is well."""
        now = time.monotonic()
        if self._bar is not None and self._task is not None:
            wait = (
                f"{waiting} wait for time to pass"
                if waiting and waiting == running
                else f"{running} running"
                if running
                else ""
            )
            bad = f"{self._tally.unexpected} unexpected  " if self._tally.unexpected else ""
            self._bar.update(self._task, completed=self._tally.total, words=bad + wait, refresh=True)
        elif not self.console.is_terminal and now - self._last >= 15 * _SECONDS:
            self._line(now)

    def message(self, words: str) -> None:
        """Something that is no verdict. *words* may come from anywhere: nothing in them is markup."""
        self._print("\n".join(text.clean(line) for line in words.split("\n")), "yellow")

    def run_ended(
        self,
        exit_code: int | None,
        paths: Sequence[str] = (),
        seconds: float | None = None,
        unfinished: int = 0,
    ) -> None:
        """All is over: the summary, the exit code in words, and where the reports are."""
        self.close()
        lasted = time.monotonic() - self._begun if seconds is None else seconds
        words = text.summary(self._tally, exit_code, lasted, paths, unfinished)
        self._print(words, "bold green" if exit_code == 0 else "bold")

    def close(self) -> None:
        """Take the bar away. Harmless where there is none."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def _print(self, words: str, style: str = "") -> None:
        """Print *words* as they are. Only the first line has the style, so that what follows stays readable."""
        words = text.encodable(words, self.console.encoding)
        head, newline, rest = words.partition("\n")
        shown = Text(head, style=style)
        if newline:
            shown.append(newline + rest, style="not bold default")
        self.console.print(shown, soft_wrap=True, highlight=False, markup=False, emoji=False)


__all__ = ["Console"]
