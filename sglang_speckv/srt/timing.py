"""Round times from the scheduler's own rhythm: the wall time between two consecutive results.

No event and no synchronisation is added. In steady decoding the time between two results is what
a round costs the user, host work included, with and without the overlap scheduler.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sglang_speckv.policy.base import Round

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class Launch:
    """What is remembered of a round between its launch and its result.

    ``clean``: nothing but the previous decode round was launched before it, so the time between
    their results is its own. ``settles`` and ``seconds``: see :class:`SharedRoundTimer`.
    """

    num_steps: int
    clean: bool
    settles: tuple[Round, ...] = ()
    seconds: torch.Tensor | None = None


class RoundTimer:
    """Turns launches and results into :class:`Round` records."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._last_was_decode = False
        self._last_result: float | None = None

    def prefilled(self) -> None:
        """A prefill was launched: the next decode round's time is not its own."""
        self._last_was_decode = False

    def launched(self, num_steps: int) -> Launch:
        launch = Launch(num_steps, clean=self._last_was_decode)
        self._last_was_decode = True
        return launch

    def finished(
        self, launch: Launch, batch_size: int, num_correct_drafts: Sequence[int]
    ) -> list[Round]:
        """The rounds that can be learned from, now that the result of ``launch`` is here."""
        now, last = self._clock(), self._last_result
        self._last_result = now
        seconds = now - last if launch.clean and last is not None else None
        return [Round(launch.num_steps, batch_size, num_correct_drafts, seconds)]


class SharedRoundTimer(RoundTimer):
    """The same for tensor parallelism, on rank 0's clock.

    Ranks that decided on their own clocks would choose different depths and hang. So each launch
    carries rank 0's time of the newest finished round, broadcast on the device in stream order
    and copied home with the result: no host waits, and rounds are learned from one launch later.
    """

    def __init__(
        self, group: Any, device: str, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        super().__init__(clock)
        self._group = group
        self._device = device
        self._unsettled: list[Round] = []

    def launched(self, num_steps: int) -> Launch:
        import torch

        launch = super().launched(num_steps)
        launch.settles = tuple(self._unsettled)
        self._unsettled.clear()
        own = launch.settles[-1].seconds if launch.settles else None
        launch.seconds = torch.full((1,), float("nan") if own is None else own, device=self._device)
        self._group.broadcast(launch.seconds, src=0)
        return launch

    def finished(
        self, launch: Launch, batch_size: int, num_correct_drafts: Sequence[int]
    ) -> list[Round]:
        self._unsettled += super().finished(launch, batch_size, num_correct_drafts)
        assert launch.seconds is not None
        shared = float(launch.seconds)
        newest = len(launch.settles) - 1
        return [
            replace(settled, seconds=shared if index == newest and shared == shared else None)
            for index, settled in enumerate(launch.settles)
        ]
