"""What a person sees on stderr while the demo works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class Screen:
    """Lines and one bar on stderr; without a terminal the lines only."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._progress: Progress | None = None

    def say(self, line: str) -> None:
        self.console.print(line, markup=False)

    @contextmanager
    def bar(self, description: str, total: float | None = None) -> Iterator[Bar]:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
        )
        if not self.console.is_terminal:
            self.say(description)
        with Progress(*columns, console=self.console, transient=True) as progress:
            yield Bar(progress, progress.add_task(description, total=total))

    @contextmanager
    def downloads(self) -> Iterator[DownloadBars]:
        with Progress(console=self.console, transient=True) as progress:
            yield DownloadBars(progress)


class Bar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def update(self, description: str, completed: float | None = None) -> None:
        self._progress.update(self._task, description=description, completed=completed)


class DownloadBars:
    """The :data:`~sglang_speckv.bench.download.Progress` that draws one bar per label."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, label: str, done: int, total: int) -> None:
        if label not in self._tasks:
            self._tasks[label] = self._progress.add_task(label, total=total)
        self._progress.update(self._tasks[label], completed=done, total=total)
