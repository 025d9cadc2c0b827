"""What arrives when: the blocks of a workload, the same for every arm.

==========  ==================================================================================
``mixed``   classes take turns, at a constant number of requests at a time
``phases``  one class per block, the next class in the next block
``sweep``   the number at a time rises through all concurrencies and falls again in each block
``bursty``  one request at a time, then the most at once, and again, in each block
==========  ==================================================================================

With a rate, requests arrive on their own (Poisson) instead of when another one is done.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sglang_speckv.ab.request import Prompt

MOVING = ("sweep", "bursty")
"""One condition for all concurrencies: each block goes through several loads."""
_BURSTS = 2
MOST_CLASSES = 8
"""Of so many a run still meets each."""


@dataclass(frozen=True)
class Condition:
    """What a block runs under, and what figures are reported for. ``concurrency`` is the most
    requests at a time (of an open loop: None), ``rate`` an open loop's arrivals per second. Moving
    traffic is reported under each number of requests at a time that its blocks go through."""

    traffic: str
    concurrency: int | None
    rate: float | None = None

    @property
    def load(self) -> str:
        """All but the traffic, as text."""
        if self.rate is not None:
            return f"{self.rate:g} requests/s"
        return f"{self.concurrency} request" + "s" * (self.concurrency != 1)

    def __str__(self) -> str:
        return f"{self.traffic}, {self.load}"


@dataclass(frozen=True)
class Segment:
    """Prompts that are answered ``concurrency`` at a time."""

    concurrency: int
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class Block:
    """The unit of comparison: the same prompts for every arm, run to the end. ``arrivals`` are
    an open loop's, in seconds after the start, one per prompt of its only segment."""

    index: int
    condition: Condition
    segments: tuple[Segment, ...]
    arrivals: tuple[float, ...] = ()

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return tuple(prompt for segment in self.segments for prompt in segment.prompts)


@dataclass(frozen=True)
class Workload:
    """Prompts with their classes in turn (:func:`~sglang_speckv.ab.prompts.load_prompts`), and
    how many requests a block has for each that runs at a time."""

    prompts: Sequence[Prompt]
    concurrencies: Sequence[int] = (1,)
    requests_per_slot: int = 1
    open_loop_requests: int = 16
    seed: int = 0

    @cached_property
    def by_class(self) -> list[list[Prompt]]:
        found: dict[str, list[Prompt]] = {}
        for prompt in self.prompts:
            found.setdefault(prompt.kind, []).append(prompt)
        return list(found.values())

    def cycle(self, condition: Condition) -> int:
        """After this many blocks every class was met equally often; 1 where classes are too many
        for that."""
        classes = len(self.by_class)
        if condition.traffic != "phases":
            requests = sum(count for _, count in self._levels(condition))
            classes //= math.gcd(classes, requests)
        return classes if classes <= MOST_CLASSES else 1

    def conditions(self, traffic: str, rates: Sequence[float] = ()) -> list[Condition]:
        """What ``traffic`` is run under: each concurrency, or one condition for all of them."""
        if traffic in MOVING:
            return [Condition(traffic, max(self.concurrencies))]
        closed = [Condition(traffic, concurrency) for concurrency in self.concurrencies]
        return closed + [Condition(traffic, None, rate) for rate in rates]

    def block(self, index: int, condition: Condition) -> Block:
        """The ``index``-th block under ``condition``; there is no last one."""
        levels = self._levels(condition)
        taken, start = 0, index * sum(count for _, count in levels)
        segments = []
        for level, count in levels:
            prompts = self._take(index, condition.traffic, start + taken, count)
            segments.append(Segment(level, prompts))
            taken += count
        return Block(index, condition, tuple(segments), self._arrivals(index, condition, taken))

    def _levels(self, condition: Condition) -> list[tuple[int, int]]:
        """(requests at a time, requests) of each segment."""
        most = condition.concurrency
        if most is None:
            return [(self.open_loop_requests, self.open_loop_requests)]
        up = sorted(self.concurrencies)
        steps = {"sweep": [*up, *up[-2::-1]], "bursty": [1, most] * _BURSTS}
        return [
            (level, level * self.requests_per_slot)
            for level in steps.get(condition.traffic, [most])
        ]

    def _take(self, index: int, traffic: str, start: int, count: int) -> tuple[Prompt, ...]:
        pool: Sequence[Prompt] = self.prompts
        if traffic == "phases":
            turn, kind = divmod(index, len(self.by_class))
            pool, start = self.by_class[kind], turn * count
        return tuple(pool[(start + i) % len(pool)] for i in range(count))

    def _arrivals(self, index: int, condition: Condition, count: int) -> tuple[float, ...]:
        if condition.rate is None:
            return ()
        gaps = np.random.default_rng((self.seed, index + 1)).exponential(
            1 / condition.rate, count - 1
        )
        return (0.0, *map(float, np.cumsum(gaps)))
