"""Running the plan: block by block, every arm in turn, until the time is spent."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sglang_speckv.bench.client import Client, Completion, ServerError
from sglang_speckv.bench.counters import Counters, read_counters
from sglang_speckv.bench.plan import Arm, Block, schedule
from sglang_speckv.bench.prompts import Prompt

WARM_UP_TOKENS = 16
BALANCED_ROUNDS = 4
"""Rounds after which every concurrency has met all four prompt classes equally often."""

Tokenize = Callable[[Prompt], list[int]]
Report = Callable[[str], None]


@dataclass(frozen=True)
class BlockResult:
    """One arm's run of one block; ``counters`` are the block's own, None without SpecKV."""

    block: Block
    tokens: int
    seconds: float
    completions: tuple[Completion, ...]
    counters: Counters | None


@dataclass
class Results:
    """Blocks by arm and concurrency, in order of their index."""

    blocks: dict[tuple[Arm, int], list[BlockResult]] = field(default_factory=dict)

    def add(self, arm: Arm, result: BlockResult) -> None:
        self.blocks.setdefault((arm, result.block.concurrency), []).append(result)

    def common(self, arms: Sequence[Arm], concurrency: int) -> dict[Arm, list[BlockResult]]:
        """The blocks that all ``arms`` ran, so that they compare pair by pair."""
        found = {arm: self.blocks.get((arm, concurrency), []) for arm in arms}
        count = min(map(len, found.values()), default=0)
        return {arm: blocks[:count] for arm, blocks in found.items()}


@dataclass
class Runner:
    """Drives the arms of the servers that are up now."""

    clients: Mapping[str, Client]
    arms: Sequence[Arm]
    concurrencies: Sequence[int]
    prompts: Sequence[Prompt]
    tokenize: Tokenize
    report: Report

    async def warm_up(self) -> float:
        """Each arm at each concurrency once, dropped; the seconds that such a round takes."""
        start = time.perf_counter()
        warm_prompts = self.prompts[::-1]
        for block, arm in schedule(0, self.arms, self.concurrencies, warm_prompts):
            self.report(f"warm-up: {label(arm, block.concurrency)}")
            await self.run_block(arm, block, WARM_UP_TOKENS)
        return time.perf_counter() - start

    async def measure(self, results: Results, max_new_tokens: int, deadline: float) -> None:
        """Whole rounds until another one would pass ``deadline`` (of ``time.perf_counter``);
        at least one, and a balanced number of them where that fits."""
        start, index = time.perf_counter(), 0
        while True:
            await self._round(index, results, max_new_tokens)
            index += 1
            now = time.perf_counter()
            ahead = BALANCED_ROUNDS if index % BALANCED_ROUNDS == 0 else 1
            if now + ahead * (now - start) / index > deadline:
                return

    async def _round(self, index: int, results: Results, max_new_tokens: int) -> None:
        for block, arm in schedule(index, self.arms, self.concurrencies, self.prompts):
            result = await self.run_block(arm, block, max_new_tokens)
            results.add(arm, result)
            rate = result.tokens / result.seconds
            self.report(f"round {index + 1}: {label(arm, block.concurrency)}, {rate:.0f} tok/s")

    async def run_block(self, arm: Arm, block: Block, max_new_tokens: int) -> BlockResult:
        client = self.clients[arm.server]
        inputs = [self.tokenize(prompt) for prompt in block.prompts]
        if arm.policy is not None:
            await client.set_policy(arm.policy)
        await client.flush_cache()
        before = await self._counters(arm)
        load = await client.run_load(inputs, block.concurrency, max_new_tokens)
        after = await self._counters(arm)
        counters = after.since(before) if after and before else None
        return BlockResult(block, load.tokens, load.seconds, load.completions, counters)

    async def _counters(self, arm: Arm) -> Counters | None:
        if arm.policy is None:
            return None
        state = await self.clients[arm.server].internal_state()
        counters = read_counters(state, arm.server)
        if counters is None:
            raise ServerError(f"server {arm.server}: SpecKV stopped being active")
        return counters


def tokens_per_request(
    warm_up_s: float, budget_s: float, rounds: int, bounds: tuple[int, int]
) -> int:
    """The output length with which ``rounds`` rounds fit the budget, a multiple of 8."""
    fitting = WARM_UP_TOKENS * budget_s / (rounds * warm_up_s)
    return max(bounds[0], min(bounds[1], int(fitting) // 8 * 8))


def label(arm: Arm, concurrency: int) -> str:
    name = arm.name if arm.name == "none" else f"{arm.draft} {arm.name}"
    return f"{name} at concurrency {concurrency}"
