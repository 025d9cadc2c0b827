"""Running the plan: block by block, every arm in turn, until the time is spent."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from sglang_speckv.bench import sampling
from sglang_speckv.bench.arms import NO_DRAFT, Arm
from sglang_speckv.bench.client import Client
from sglang_speckv.bench.connection import ServerError
from sglang_speckv.bench.counters import (
    Counters,
    Reliability,
    read_counters,
    read_reliability,
)
from sglang_speckv.bench.load import Answer, Completion, drive
from sglang_speckv.bench.openai_client import OpenAIClient
from sglang_speckv.bench.pace import WARM_UP_TOKENS, Pace, projected
from sglang_speckv.bench.plan import order_of, tasks
from sglang_speckv.bench.prompts import Prompt
from sglang_speckv.bench.results import BlockResult, Results
from sglang_speckv.bench.sampling import Samples
from sglang_speckv.bench.traffic import Block, Condition, Workload

SURE_AFTER, SPARED_EVERY, FAR_BEHIND = 2, 8, 0.75
"""Of every eight blocks an arm runs the first two, the others only if it has at least three
quarters of the best static arm's tok/s."""

Tokenize = Callable[[Prompt], list[int]]
Report = Callable[[str], None]


class Fleet(Protocol):
    """The servers that are up."""

    clients: dict[str, Client | OpenAIClient]

    def fail(self, server: str, error: ServerError) -> None:
        """Take a server out that failed at work."""


@dataclass
class Runner:
    """Drives the arms of the servers that are up now.

    With ``spare``, arms that are far behind run fewer blocks. ``keep`` gets every finished block,
    ``reliability`` what the policies predicted against what came, as of their last block.
    """

    fleet: Fleet
    arms: Sequence[Arm]
    workload: Workload
    traffic: Sequence[Sequence[Condition]]
    tokenize: Tokenize
    report: Report
    temperature: float = 0.0
    spare: bool = False
    keep: Callable[[Arm, BlockResult], None] = lambda arm, result: None
    reliability: dict[Arm, Reliability] = field(default_factory=dict)
    _took_s: dict[Condition, float] = field(default_factory=dict)

    @property
    def up(self) -> list[Arm]:
        """Arms whose servers have not failed."""
        return [arm for arm in self.arms if arm.server in self.fleet.clients]

    async def warm_up(self) -> Pace:
        """Short blocks, dropped: what learns at every load, the rest at the largest. Returns what
        a block of every arm under every condition would take."""
        conditions = [condition for group in self.traffic for condition in group]
        loads = sorted({condition.concurrency or 0 for condition in conditions}, reverse=True)
        short = replace(self.workload, requests_per_slot=1)
        took: dict[tuple[Arm, int], Pace] = {}
        for load in loads:
            block = short.block(-1, next(c for c in conditions if (c.concurrency or 0) == load))
            for arm in self.up:
                if load == loads[0] or arm.learns or arm.name == "none":
                    self.report(f"warm-up: {label(arm, block.condition)}")
                    result = await self.attempt(arm, block, WARM_UP_TOKENS)
                    if result is not None:
                        took[arm, load] = Pace.of(result).times(self.workload.requests_per_slot)
        return projected(took, self.up, [c.concurrency or 0 for c in conditions], loads[0])

    async def measure(
        self, results: Results, max_new_tokens: int, deadline: float, rounds: int | None = None
    ) -> None:
        """Blocks until the next would pass ``deadline`` (of ``time.perf_counter``) or each
        condition has ``rounds``; at least one under each condition of the first traffic."""
        spent: set[Condition] = set()
        for number, block in tasks(self.workload, self.traffic, rounds):
            first = block.index == 0 and block.condition in self.traffic[0]
            if not first and time.perf_counter() + self._expected(block.condition) > deadline:
                spent.add(block.condition)
            if not self.up or len(spent) == sum(map(len, self.traffic)):
                return
            if block.condition not in spent:
                await self._task(number, block, results, max_new_tokens)

    async def _task(self, number: int, block: Block, results: Results, max_new_tokens: int) -> None:
        started = time.perf_counter()
        waiting = [
            arm
            for arm in self.up
            if not (results.has(arm, block) or self._spared(arm, block, results))
        ]
        for arm in order_of(waiting, number, block.index) if waiting else []:
            if arm.server not in self.fleet.clients:
                continue
            result = await self.attempt(arm, block, max_new_tokens)
            if result is not None:
                results.add(arm, result)
                self.keep(arm, result)
                self.report(
                    f"{block.condition.traffic}, block {block.index + 1}: "
                    f"{label(arm, block.condition)}, {result.tok_per_s:.0f} tok/s"
                )
        if waiting:
            self._took_s[block.condition] = time.perf_counter() - started

    def _spared(self, arm: Arm, block: Block, results: Results) -> bool:
        """Whether time is better spent on other arms: this one is far behind, and its rare block
        is not due."""
        if not (self.spare and arm.may_be_spared) or block.index % SPARED_EVERY < SURE_AFTER:
            return False
        return results.behind(arm, block.condition) < FAR_BEHIND

    def _expected(self, condition: Condition) -> float:
        """Seconds of a task as the last one took, or one of the same load; else 0."""
        alike = [s for c, s in self._took_s.items() if c.concurrency == condition.concurrency]
        return self._took_s.get(condition, max(alike, default=0.0))

    async def attempt(self, arm: Arm, block: Block, max_new_tokens: int) -> BlockResult | None:
        """One block, or None where the server failed, which ends that server's arms."""
        try:
            return await self.run_block(arm, block, max_new_tokens)
        except ServerError as error:
            self.fleet.fail(arm.server, error)
            return None

    async def repeated(self, arm: Arm, concurrency: int) -> dict[Arm, Samples]:
        """Sampled answers to the first prompt, many times; nothing where the server failed."""
        client = self.fleet.clients[arm.server]
        try:
            if arm.policy is not None and isinstance(client, Client):
                await client.set_policy(arm.policy)
            answer = self._answer(client, sampling.TOKENS)
            return {arm: await sampling.draw(answer, self.workload.prompts[0], concurrency)}
        except ServerError as error:
            self.fleet.fail(arm.server, error)
            return {}

    async def run_block(self, arm: Arm, block: Block, max_new_tokens: int) -> BlockResult:
        client = self.fleet.clients[arm.server]
        if arm.policy is not None:
            assert isinstance(client, Client)
            await client.set_policy(arm.policy)
        await client.flush_cache()
        before = await self._counters(arm, client)
        load = await drive(block, self._answer(client, max_new_tokens))
        after = await self._counters(arm, client)
        counters = after.since(before) if after and before else None
        return BlockResult(block, load.seconds, load.completions, counters)

    def _answer(self, client: Client | OpenAIClient, max_new_tokens: int) -> Answer:
        async def answer(prompt: Prompt, request_id: str) -> Completion:
            if isinstance(client, OpenAIClient):
                return await client.chat(prompt, max_new_tokens, request_id, self.temperature)
            ids = self.tokenize(prompt)
            return await client.generate(ids, max_new_tokens, request_id, self.temperature)

        return answer

    async def _counters(self, arm: Arm, client: Client | OpenAIClient) -> Counters | None:
        if arm.policy is None or isinstance(client, OpenAIClient):
            return None
        state = await client.internal_state()
        counters = read_counters(state, arm.server)
        if counters is None:
            raise ServerError(f"server {arm.server}: SpecKV stopped being active")
        if state["speckv"].get("policy", arm.policy) != arm.policy:
            raise ServerError(f"server {arm.server} runs another policy than {arm.policy!r}")
        self.reliability[arm] = read_reliability(state)
        return counters


def label(arm: Arm, condition: Condition) -> str:
    name = arm.name if arm.draft == NO_DRAFT else f"{arm.draft} {arm.name}"
    return f"{name} at {condition}"
