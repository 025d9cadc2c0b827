"""Sending a block's requests when their turn comes, and what came back."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count
from uuid import uuid4

import msgspec

from sglang_speckv.ab.request import Completion, Prompt
from sglang_speckv.ab.traffic import Block, Segment

_RUN = uuid4().hex[:8]
_serial = count()


@dataclass(frozen=True)
class Load:
    """Completions in the order of their prompts, and the wall time of them all."""

    completions: tuple[Completion, ...]
    seconds: float


Answer = Callable[[Prompt, str], Awaitable[Completion]]
"""Answers one prompt; the second argument is the request's id."""


async def drive(block: Block, answer: Answer) -> Load:
    """All of ``block``; raises the first error of any request."""
    done: list[Completion] = []
    start = time.perf_counter()
    for segment in block.segments:
        done += await _together(segment, block.arrivals, start, answer)
    return Load(tuple(done), time.perf_counter() - start)


async def _together(
    segment: Segment, arrivals: tuple[float, ...], start: float, answer: Answer
) -> list[Completion]:
    slots = asyncio.Semaphore(len(segment.prompts) if arrivals else segment.concurrency)

    async def one(number: int, prompt: Prompt) -> Completion:
        if arrivals:  # uvloop's timers count whole milliseconds, and may be early
            while (left := start + arrivals[number] - time.perf_counter()) > 0.0:
                await asyncio.sleep(left)
        async with slots:
            sent_s = time.perf_counter() - start
            done = await answer(prompt, request_id(prompt))
            return msgspec.structs.replace(done, sent_s=sent_s)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(*item)) for item in enumerate(segment.prompts)]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def request_id(prompt: Prompt) -> str:
    """``CLASS:PROMPT:ANYTHING``, never the same twice: traces are grouped by its parts."""
    kind, name = (re.sub(r"[^\w.-]", "_", part)[:64] for part in (prompt.kind, prompt.id))
    return f"{kind}:{name}:{_RUN}-{next(_serial)}"
