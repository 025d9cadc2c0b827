"""What a person sees on stderr while the demo works."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class Screen:
    """Lines and live bars on stderr; into a file, a line wherever something new begins."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)

    @contextmanager
    def status(self, description: str) -> Iterator[Callable[[str], None]]:
        """Shows ``description`` and whatever the yielded function is called with."""
        if not self.console.is_terminal:
            yield self._lines(description)
            return
        text = TextColumn("{task.description}", markup=False)
        columns = (SpinnerColumn(), TimeElapsedColumn(), text)
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(description, total=None)
            yield lambda line: progress.update(task, description=line)

    def _lines(self, description: str) -> Callable[[str], None]:
        """Of ``"round 3: ..."`` only the first of each round is worth a line."""
        shown = {description}
        self.say(description)

        def update(line: str) -> None:
            head = line.split(":", 1)[0]
            if head not in shown:
                shown.add(head)
                self.say(head)

        return update

    @contextmanager
    def downloads(self) -> Iterator[DownloadBars]:
        with Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            console=self.console,
            disable=not self.console.is_terminal,
        ) as progress:
            yield DownloadBars(progress, self)


class DownloadBars:
    """The :data:`~sglang_speckv.bench.download.Progress` that draws one bar per label."""

    def __init__(self, progress: Progress, screen: Screen) -> None:
        self._progress, self._screen = progress, screen
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, label: str, done: int, total: int) -> None:
        if label not in self._tasks:
            self._tasks[label] = self._progress.add_task(label, total=total)
            if self._progress.disable:
                self._screen.say(f"{label} ({total / 1e6:.0f} MB)" if total > 1 else label)
        self._progress.update(self._tasks[label], completed=done, total=total)
