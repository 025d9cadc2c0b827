"""What a round costs, measured on a running server by depth, batch size and context."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.stats import trim_mean

from examples.gpu.observe import keep_awake, memory_of, pin
from sglang_speckv.ab.client import Client, ServerError
from sglang_speckv.policy.prior import OFF

SHORT = 4
REPEATS = 5


@dataclass(frozen=True)
class Cell:
    """Seconds per round: mean without the outer tenths, and quartiles. ``context_len`` is the
    prompt of each request; at most the tokens of ``rounds`` full rounds come on top of it.
    ``asleep``: of depth 0, which the draft slept through."""

    batch_size: int
    num_steps: int
    context_len: int
    seconds: float
    low: float
    high: float
    rounds: int
    asleep: bool = False


def cell(
    size: int, num_steps: int, context_len: int, times: Sequence[float], asleep: bool = False
) -> Cell:
    low, high = np.quantile(times, [0.25, 0.75]).round(6).tolist()
    mean = round(float(trim_mean(times, 0.1)), 6)
    return Cell(size, num_steps, context_len, mean, low, high, len(times), asleep)


def round_times(
    recent: Iterable[Sequence[float]], num_steps: int, batch_size: int, since: float
) -> list[float]:
    """Seconds between consecutive rounds of this depth and size after ``since``; ``recent`` is
    ``internal_states[].speckv.recent``: [time, num_steps, batch size] per round."""
    rows = [row for row in recent if row[0] > since]
    wanted = [num_steps, batch_size]
    return [b[0] - a[0] for a, b in pairwise(rows) if list(a[1:]) == list(b[1:]) == wanted]


async def time_depth(
    client: Client, prompts: Sequence[list[int]], num_steps: int, rounds: int
) -> list[float]:
    """Seconds of at least about ``rounds`` rounds of ``prompts`` together at this depth."""
    await pin(client, num_steps)
    since = max((row[0] for row in await _recent(client)), default=0.0)
    await generate(client, prompts, rounds * (num_steps + 1) + 1)
    times = round_times(await _recent(client), num_steps, len(prompts), since)
    if not times:
        raise ServerError(
            f"server {client.name} ran no two rounds of {num_steps} steps with {len(prompts)} "
            "requests at once; is there KV memory for them?"
        )
    return times


async def time_off(client: Client, prompts: Sequence[list[int]], rounds: int) -> list[float]:
    """Seconds per token of a server that never drafts: a long answer less a short one."""
    times, more = [], 4 * rounds
    for _ in range(REPEATS):
        short = await _timed(client, prompts, SHORT)
        times.append((await _timed(client, prompts, SHORT + more) - short) / more)
    if statistics.median(times) <= 0:
        raise ServerError(f"server {client.name}: {more} more tokens took no time")
    return times


async def generate(client: Client, prompts: Sequence[list[int]], tokens: int) -> None:
    """All ``prompts`` as one request, each answered by exactly ``tokens`` tokens."""
    sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
    body = {"input_ids": list(prompts), "sampling_params": sampling}
    await client.call("POST", "/generate", body)


async def measure(
    client: Client,
    sizes: Sequence[int],
    contexts: Sequence[int],
    steps: Sequence[int],
    rounds: int,
    vocab: int,
) -> AsyncIterator[Cell]:
    """Every cell of one server that its KV cache has room for; ``steps`` is empty for a server
    without speculation. A draft that can sleep at depth 0 is timed there awake and asleep."""
    state = await client.internal_state()
    memory, sleeps = memory_of(state), state.get("speckv", {}).get("draft_sleeps", False)
    room = memory["token_capacity"] or math.inf
    new = rounds * (max(steps) + 1) + reserve(steps) if steps else SHORT + 4 * rounds
    kinds = [(num_steps, False) for num_steps in steps]
    if sleeps and 0 in steps:
        kinds.append((0, True))
    for context in contexts:
        for size in sizes:
            if size * (context + new) > room:
                break
            prompts = distinct_prompts(size, context, vocab)
            await generate(client, prompts, 1)  # prefixes are cached from here on
            if not steps:
                times = await time_off(client, prompts, rounds)
                yield cell(size, OFF, context, times)
            for num_steps, asleep in kinds:
                if sleeps:
                    await keep_awake(client, not asleep)
                times = await time_depth(client, prompts, num_steps, rounds)
                yield cell(size, num_steps, context, times, asleep)


def reserve(steps: Sequence[int]) -> int:
    """KV slots per request that SGLang allocates ahead for drafts, and some."""
    return 4 * (max(steps) + 1)


def distinct_prompts(size: int, length: int, vocab: int) -> list[list[int]]:
    """Prompts that share no prefix."""
    return [[(97 * i + 31 * j * (i + 1)) % vocab for j in range(length)] for i in range(size)]


def replay_table(cells: Iterable[Cell]) -> dict[str, Any]:
    """What ``speckv replay --cost`` reads; of one context only. There 0 steps have a signal for the
    next round, so the draft is awake, and -1 is a server that never drafts."""
    keys = ("batch_size", "num_steps", "seconds")
    return {"rows": [{key: asdict(c)[key] for key in keys} for c in cells if not c.asleep]}


async def _recent(client: Client) -> list[list[float]]:
    shown = (await client.internal_state()).get("speckv")
    if shown is None:
        raise ServerError(f"server {client.name} is not served by SpecKV; see its log")
    return shown["recent"]


async def _timed(client: Client, prompts: Sequence[list[int]], tokens: int) -> float:
    started = time.perf_counter()
    await generate(client, prompts, tokens)
    return time.perf_counter() - started
