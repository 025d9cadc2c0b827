"""Arms that answer the same prompts in blocks, one after the other in random order."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from sglang_speckv.ab.client import Client
from sglang_speckv.ab.intervals import Sample
from sglang_speckv.ab.request import Completion
from sglang_speckv.progress import Screen

Asked = Sequence[Sequence[int]]
"""Token ids of prompts that are asked together."""


async def in_blocks(
    arms: int,
    turn: Callable[[int, Asked, bool], Awaitable[float]],
    prompts: Asked,
    requests: int,
    blocks: int,
    tokens: int,
    screen: Screen,
) -> Sample:
    """``turn`` lets an arm answer some prompts with ``tokens`` each, and returns the seconds that
    it took; it is told whether the block counts. The first one warms up and does not."""
    order = random.Random(requests)
    seconds = np.zeros((arms, blocks + 1))
    for block in range(blocks + 1):
        screen.say(f"{requests} requests, block {block} of {blocks}")
        asked = [prompts[(block * requests + i) % len(prompts)] for i in range(requests)]
        for i in order.sample(range(arms), arms):
            seconds[i, block] = await turn(i, asked, block > 0)
    counted = np.repeat(seconds[:, 1:] / requests, requests, axis=1)
    number = np.arange(blocks * requests)
    prompt = (number + requests) % len(prompts)
    return Sample(np.full(counted.shape, tokens), counted, number // requests, prompt)


async def answers(client: Client, asked: Asked, tokens: int) -> tuple[list[Completion], float]:
    """To prompts that are asked together, none of them cached, and the seconds that they took."""
    await client.flush_cache()
    started = time.perf_counter()
    found = await asyncio.gather(*(client.generate(ids, tokens) for ids in asked))
    return found, time.perf_counter() - started
