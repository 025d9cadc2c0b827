"""What a person sees on stderr while the demo works."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


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
