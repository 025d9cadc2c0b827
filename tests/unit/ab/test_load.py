"""Requests are sent when their turn comes."""

import asyncio
import time
from collections.abc import Callable

import pytest
import uvloop

from sglang_speckv.ab.client import ServerError
from sglang_speckv.ab.load import Load, drive, request_id
from sglang_speckv.ab.request import Completion, Prompt
from sglang_speckv.ab.traffic import Block, Condition, Segment

PROMPTS = tuple(Prompt(f"p{i}", "code", str(i)) for i in range(6))


class Answering:
    """Answers with the prompt's number after a while; the first takes longest."""

    def __init__(self) -> None:
        self.running = self.most = 0
        self.sent: list[float] = []

    async def __call__(self, prompt: Prompt, request: str) -> Completion:
        self.sent.append(time.perf_counter())
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.01 * (6 - int(prompt.prompt)))
        self.running -= 1
        return Completion((int(prompt.prompt),), tokens=1)


def driven(
    block: Block, loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
) -> tuple[Load, Answering]:
    answering = Answering()
    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(drive(block, answering)), answering


def test_a_closed_loop_keeps_order_and_its_concurrency():
    load, answering = driven(Block(0, Condition("mixed", 3), (Segment(3, PROMPTS),)))
    assert [done.output_ids[0] for done in load.completions] == [0, 1, 2, 3, 4, 5]
    assert answering.most == 3 and load.seconds > 0


def test_segments_follow_each_other():
    segments = (Segment(1, PROMPTS[:2]), Segment(4, PROMPTS[2:]))
    load, answering = driven(Block(0, Condition("sweep", 4), segments))
    assert len(load.completions) == 6 and answering.most == 4
    assert answering.sent[2] - answering.sent[0] >= 0.1  # the first two one after the other


@pytest.mark.parametrize("loop", [asyncio.SelectorEventLoop, uvloop.new_event_loop])
def test_an_open_loop_sends_at_its_times_whatever_is_running(
    loop: Callable[[], asyncio.AbstractEventLoop],
):
    """Never before them: uvloop, which SGLang installs, wakes a sleeper up to a few ms early."""
    arrivals = (0.0, 0.01, 0.02, 0.1, 0.1, 0.1)
    block = Block(0, Condition("mixed", None, 10.0), (Segment(6, PROMPTS),), arrivals)
    start = time.perf_counter()
    _, answering = driven(block, loop)
    assert all(s - start >= a for s, a in zip(sorted(answering.sent), arrivals, strict=True))
    assert answering.most >= 3


def test_the_first_error_ends_it():
    async def failing(prompt: Prompt, request: str) -> Completion:
        raise ServerError("out of memory")

    block = Block(0, Condition("mixed", 2), (Segment(2, PROMPTS),))
    with pytest.raises(ServerError, match="out of memory"):
        asyncio.run(drive(block, failing))


def test_request_ids_have_three_parts_whatever_the_prompt_is_called():
    ids = [request_id(Prompt("a:b/ä", "sha re", "x")) for _ in range(3)]
    assert len(set(ids)) == 3
    assert all(name.split(":")[:2] == ["sha_re", "a_b_ä"] for name in ids)
