"""Whose time a second is, on a machine of two clocks: a host that schedules, launches and looks at
results, and a device that computes in order.

The loop is that of SGLang's overlap scheduler: a batch is launched before the result of the last
one is looked at. Whatever is the bottleneck, a time that the tracker hands out has to be what
rounds of that depth take when they run alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch

from sglang_speckv.srt.rounds import DecodeLaunch, Launch, RoundTracker
from tests.unit.srt.test_rounds import Req, signals

PREFILL = -1
DEPTHS = (0, 1, 3, 7)


@dataclass
class Machine:
    """Milliseconds. ``blocking``: a launch waits for the device before its second half, as draft
    plans do that copy lengths to the host."""

    launch: dict[int, float]
    device: dict[int, float]
    blocking: bool = False
    result: float = 0.1
    now: float = 0.0
    free: float = 0.0
    ends: dict[int, float] = field(default_factory=dict)

    def launches(self, number: int, work: int) -> None:
        self.now += self.launch[work] / 2
        if self.blocking:
            self.now = max(self.now, self.free)
        self.now += self.launch[work] / 2
        self.free = max(self.free, self.now) + self.device[work]
        self.ends[number] = self.free

    def waits(self, number: int) -> bool:
        waited = self.ends[number] > self.now
        self.now = max(self.now, self.ends[number])
        return waited

    def alone(self, depth: int) -> float:
        """What a round takes among rounds of its kind."""
        if self.blocking:
            return self.device[depth] + self.launch[depth] / 2
        return max(self.launch[depth] + self.result, self.device[depth])


def per_depth(fixed: float, each: float, prefill: float) -> dict[int, float]:
    return {PREFILL: prefill, **{depth: fixed + each * depth for depth in DEPTHS}}


MACHINES = {
    "the device is slow": lambda: Machine(per_depth(0.3, 0.2, 8), per_depth(10, 1.5, 30)),
    "the host is slow": lambda: Machine(per_depth(4, 1.5, 12), per_depth(1, 0.1, 3)),
    "the deepest round is the host's": lambda: Machine(per_depth(1, 1, 12), per_depth(4, 0.1, 9)),
    "launches wait for the device": lambda: Machine(
        per_depth(2, 0.5, 12), per_depth(10, 1, 30), blocking=True
    ),
}


def served(machine: Machine, works: list[int], overlap: bool) -> Iterator[tuple[int, float | None]]:
    """Depth and time of every decode round whose result came."""
    tracker = RoundTracker(clock=lambda: machine.now)
    reqs = [Req(), Req()]
    pending: list[tuple[int, Launch]] = []
    for number, work in enumerate([*works, None]):
        if work is not None:
            machine.launches(number, work)
            if work == PREFILL:
                launch = tracker.prefilled(reqs, torch.full((2, 1, 2), 0.5))
            else:
                launch = tracker.launched(reqs, work, signals(work, 0.5, 0.5))
            pending.append((number, launch))
        while len(pending) > (overlap and work is not None):
            ended, launch = pending.pop(0)
            waited = machine.waits(ended)
            if isinstance(launch, DecodeLaunch):
                (done,) = tracker.finished(launch, [0, 0], waited)
                yield done.outcome.num_steps, done.outcome.seconds
            else:
                tracker.landed(launch)
            machine.now += machine.result


def traffic(run: int, seed: int) -> list[int]:
    """Depths for ``run`` rounds each, and now and then a prefill."""
    rng = random.Random(seed)
    works: list[int] = [PREFILL]
    for _ in range(120):
        works += [rng.choice(DEPTHS)] * run
        if rng.random() < 0.2:
            works.insert(len(works) - rng.randrange(run), PREFILL)
    return works


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("run", [1, 2, 4])
def test_a_time_is_that_of_its_depth_alone(name: str, run: int) -> None:
    machine = MACHINES[name]()
    for depth, seconds in served(machine, traffic(run, seed=run), overlap=True):
        assert seconds is None or seconds == pytest.approx(machine.alone(depth), rel=0.02)


@pytest.mark.parametrize("name", MACHINES)
def test_every_depth_is_timed(name: str) -> None:
    """In runs of four rounds, as in the start-up profile; where the device is the bottleneck, all
    but the first after a prefill, however the depth moves."""
    runs = list(served(MACHINES[name](), traffic(4, seed=0), overlap=True))
    for depth in DEPTHS:
        times = [seconds for of, seconds in runs if of == depth]
        assert sum(seconds is not None for seconds in times) > 0.5 * len(times)
    if name == "the device is slow":
        moving = list(served(MACHINES[name](), traffic(1, seed=0), overlap=True))
        assert sum(seconds is not None for _, seconds in moving) > 0.7 * len(moving)


@pytest.mark.parametrize("name", MACHINES)
def test_without_overlap_only_prefills_disturb(name: str) -> None:
    machine = MACHINES[name]()
    works = traffic(1, seed=3)
    rounds = list(served(machine, works, overlap=False))
    after_prefill = sum(a == PREFILL != b for a, b in pairwise(works))
    assert sum(seconds is None for _, seconds in rounds) == after_prefill
    for depth, seconds in rounds:
        whole = machine.launch[depth] + machine.device[depth] + machine.result
        assert seconds is None or seconds == pytest.approx(whole)
