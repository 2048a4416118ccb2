"""A run as it goes, on standard error: what is being done, what was found, and the time left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.text import Text

from tauten.cli.tables import signed

if TYPE_CHECKING:
    from tauten.make.search.result import Entry

_MARKS = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class LiveProgress:
    """An ``Observer`` that keeps one line up to date on a terminal, and prints each finding as a line that stays.

    Where standard error is no terminal, only the findings and the stages are printed. Once ``interrupted`` is set,
    whatever it is told next raises ``KeyboardInterrupt``.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(self, console=console, refresh_per_second=8, transient=True)
        self._started = self._stage_started = time.monotonic()
        self._stage = self._step = ""
        self._share = 0.0
        self._left = 0
        self._spent: list[float] = []
        self.finished = 0
        self.interrupted = False

    def __enter__(self) -> LiveProgress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def __rich__(self) -> Text:
        now = time.monotonic()
        line = Text.assemble(
            (_MARKS[int(now * 8) % len(_MARKS)], "cyan"), f" {self._stage}", (f" · {self._step}" if self._step else "")
        )
        if self._share > 0:
            line.append(f" {self._share:.0%}")
        line.append(f"  {_clock(now - self._started)}", "dim")
        if (left := self._time_left(now)) is not None:
            line.append(f", about {_clock(left)} left", "dim")
        return line

    def check(self) -> None:
        """``KeyboardInterrupt`` where one was asked for: code that was running then may have swallowed it."""
        if self.interrupted:
            raise KeyboardInterrupt

    def stage(self, text: str, left: int = 0) -> None:
        self.check()
        self._stage, self._step, self._share, self._left = text, "", 0.0, left
        self._stage_started = time.monotonic()
        if not self._console.is_terminal:
            self._console.print(f"{text} …", style="dim")

    def step(self, text: str, share: float) -> None:
        self.check()
        self._step, self._share = text, min(max(share, 0.0), 1.0)

    def found(self, entry: Entry, reused: bool) -> None:
        self.check()
        self.finished += 1
        if not reused:
            self._spent.append(time.monotonic() - self._stage_started)
        size, quality = entry.measure("size_bytes"), entry.measure("quality")
        text = f"  {entry.name}"
        if size and quality and entry.drop_points:
            points = signed(-entry.drop_points.value)
            text += f": {quality.value:.2f} {quality.unit} ({points} points), {size.value:,.0f} bytes"
        self._console.print(text + ("  [dim](from an earlier run)[/]" if reused else ""), soft_wrap=True)

    def refused(self, name: str, reason: str) -> None:
        self.check()
        self._console.print(Text.assemble(("  " + name, "yellow"), f": not made: {reason}"), soft_wrap=True)

    def _time_left(self, now: float) -> float | None:
        if not self._spent or not self._left:
            return None
        each = sum(self._spent) / len(self._spent)
        return max(each - (now - self._stage_started), 0.0) + each * self._left


def _clock(seconds: float) -> str:
    whole = int(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
