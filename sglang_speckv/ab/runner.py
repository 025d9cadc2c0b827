"""Running a comparison: servers up, every arm in turn, block by block, until the time is spent.

Each block is run by every arm whose server is up before the next block begins, in an order that is
drawn anew for each block, so that no arm is favoured by its place or by the arm before it.
Conditions take turns until each has blocks enough for an interval; from then on the next block goes
where the interval is widest. Where the servers of a draft do not fit together they run one after
another: conditions take turns to the end, and the same blocks are compared across time.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np

from sglang_speckv.ab import sampled
from sglang_speckv.ab.arms import Arm
from sglang_speckv.ab.client import Client, ServerError
from sglang_speckv.ab.comparison import Comparison, Group
from sglang_speckv.ab.counters import Counters, read_counters
from sglang_speckv.ab.forecast import WARM_UP_TOKENS, Forecast
from sglang_speckv.ab.intervals import MIN_BLOCKS
from sglang_speckv.ab.journal import BlockResult
from sglang_speckv.ab.load import Answer, drive
from sglang_speckv.ab.lossless import TextCheck, tie_gap
from sglang_speckv.ab.openai_client import OpenAIClient
from sglang_speckv.ab.outcome import Outcome
from sglang_speckv.ab.request import Completion, Prompt
from sglang_speckv.ab.servers import Fleet, fleet_of
from sglang_speckv.ab.traffic import Block, Condition
from sglang_speckv.ab.verdict import widest
from sglang_speckv.progress import Report, Screen


async def run(wanted: Comparison, outcome: Outcome, screen: Screen) -> None:
    """All of it; servers end with it, also when it is interrupted or terminated. The time is shared
    out by the number of arms; a run that is resumed has what its earlier sessions left."""
    end_when_terminated()
    used = [outcome.blocks.seconds(group.arms) for group in wanted.groups]
    deadline = time.perf_counter() + wanted.options.seconds - sum(used)
    arms_left = len(wanted.arms)
    for i, group in enumerate(wanted.groups):
        share = len(group.arms) / arms_left
        left = deadline - time.perf_counter() + sum(used[i:])
        await _run_group(wanted, group, share * left - used[i], outcome, screen)
        arms_left -= len(group.arms)


def end_when_terminated() -> None:
    """SIGTERM cancels the running task, so that its servers end with it."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


async def _run_group(
    wanted: Comparison, group: Group, seconds: float, outcome: Outcome, screen: Screen
) -> None:
    arms, until = group.arms, time.perf_counter() + seconds
    async with serving(wanted, group, outcome, screen) as (fleet, report):
        runner = Runner(wanted, fleet, arms, outcome, report, screen)
        try:
            told = (await runner.warm_up()).text(until - time.perf_counter())
            screen.say(f"{arms[0].draft}: {told}")
            await runner.measure(until)
            if wanted.options.temperature > 0:
                await runner.sample()
        finally:
            fleet.note_memory()
        if wanted.options.temperature == 0:
            report(f"{arms[0].draft}, comparing the answers")
            await _judge(wanted, fleet, outcome)
            _tell(fleet, outcome, screen)


@asynccontextmanager
async def serving(
    wanted: Comparison, group: Group, outcome: Outcome, screen: Screen
) -> AsyncIterator[tuple[Fleet, Report]]:
    """The servers of ``group`` that are up and what their arms claim; the others are told of."""
    flags = ("--model-path", wanted.target, *wanted.server_flags)
    starting = f"{group.arms[0].draft}, starting {len(group.servers)} SGLang server(s)"
    with screen.status(starting) as report:
        async with fleet_of(group.servers, flags, wanted.logs, wanted.options) as fleet:
            known = [facts.settings for facts in outcome.facts.values() if facts.settings]
            await fleet.prove(group.arms, next(iter(known), None), wanted.options.own_memory)
            outcome.facts |= fleet.facts
            _tell(fleet, outcome, screen)
            yield fleet, report


def _tell(fleet: Fleet, outcome: Outcome, screen: Screen) -> None:
    for name, reason in fleet.failures.items():
        if name not in outcome.failures:
            screen.say(f"out of the comparison: {reason}")
    outcome.failures |= fleet.failures


async def _judge(wanted: Comparison, fleet: Fleet, outcome: Outcome) -> None:
    """Answers of every arm that has any against those of its ``none``, if that is up."""
    for none in wanted.arms:
        client = fleet.clients.get(none.server)
        if none.name != "none" or not isinstance(client, Client):
            continue
        check = TextCheck(client, wanted.tokenize, tie_gap(wanted.dtype))
        for arm in wanted.arms:
            if arm.draft != none.draft or arm == none or arm.is_elsewhere:
                continue
            for condition in outcome.blocks.conditions():
                answers = list(_answers(outcome.blocks.paired(arm, none, condition)))
                if answers:
                    try:
                        outcome.verdicts[arm, condition] = await check.verdict(answers)
                    except ServerError as error:
                        return fleet.fail(none.server, error)


def _answers(
    pairs: Sequence[tuple[BlockResult, BlockResult]],
) -> Iterator[tuple[Prompt, tuple[int, ...], tuple[int, ...]]]:
    """Prompts, the tokens that an arm answered and those of its ``none``."""
    for ours, theirs in pairs:
        for prompt, done, expected in zip(
            ours.block.prompts, ours.completions, theirs.completions, strict=True
        ):
            yield prompt, done.output_ids, expected.output_ids


@dataclass
class Runner:
    """Drives the arms of the servers that are up now."""

    wanted: Comparison
    fleet: Fleet
    arms: Sequence[Arm]
    outcome: Outcome
    report: Report
    screen: Screen
    _took_s: dict[Condition, float] = field(default_factory=dict)

    @property
    def up(self) -> list[Arm]:
        """Arms whose servers have not failed."""
        return [arm for arm in self.arms if arm.server in self.fleet.clients]

    async def warm_up(self) -> Forecast:
        """One short block of every arm at every load, dropped; how long real ones will take."""
        forecast = Forecast(self.wanted.options.max_new_tokens)
        for condition in self.wanted.conditions:
            block = self.wanted.workload.block(-1, condition)
            if not forecast.is_new(block):
                continue
            for arm in self.up:
                self.report(f"{arm.draft}, warm-up: {arm.name} at {condition.load}")
                result = await self.attempt(arm, block, WARM_UP_TOKENS)
                if result is not None:
                    forecast.add(result)
        return forecast

    async def measure(self, until: float) -> None:
        """Blocks until the next would pass ``until`` (of ``time.perf_counter``) or each condition
        has as many as were asked for. The first under each condition of the first traffic is always
        run."""
        spent: set[Condition] = set()
        first = self.wanted.traffic[0]
        while self.up and (condition := self._next(spent)) is not None:
            wanted = self._done(condition) == 0 and condition in first
            if not wanted and time.perf_counter() + self._expected_s(condition) > until:
                spent.add(condition)
                continue
            await self._block(self.wanted.workload.block(self._fresh(condition), condition))

    def _next(self, spent: set[Condition]) -> Condition | None:
        """Where the next block is worth most. First all conditions get blocks enough for an
        interval, whole cycles of classes, in step; of two the one with more requests at a time,
        whose blocks are longer. Then the interval that is widest, a begun cycle before others."""
        options, found = self.wanted.options, []
        for condition in self.wanted.conditions:
            done, cycle = self._done(condition), self.wanted.workload.cycle(condition)
            if condition in spent or done >= options.most_blocks:
                continue
            wanted = -(-MIN_BLOCKS // cycle) * cycle
            enough = self.wanted.together and done >= wanted
            value, begun = -done / wanted, False
            if enough:
                value = widest(self.outcome.blocks, self.up, condition)
                begun = done % cycle != 0
            found.append(((not enough, begun, value, condition.concurrency or 0), condition))
        return max(found, default=(None, None), key=lambda pair: pair[0])[1]

    def _done(self, condition: Condition) -> int:
        """Blocks that every arm has run, or was not up for."""
        ran = [self.outcome.blocks.indices(arm, condition) for arm in self.up]
        return len(set.intersection(*ran)) if ran else 0

    def _fresh(self, condition: Condition) -> int:
        """The first block that no arm has run: one that was broken off is not filled in later, when
        the machine may be another."""
        ran = [self.outcome.blocks.indices(arm, condition) for arm in self.up]
        return 1 + max(set.union(*ran), default=-1)

    def _expected_s(self, condition: Condition) -> float:
        """Seconds of all arms' blocks as the last ones took, or some of the same load; else 0."""
        alike = [s for c, s in self._took_s.items() if c.concurrency == condition.concurrency]
        return self._took_s.get(condition, max(alike, default=0.0))

    async def _block(self, block: Block) -> None:
        started, blocks = time.perf_counter(), self.outcome.blocks
        order = drawn_order(self.arms, block, self.wanted.options.seed)
        for place, arm in enumerate(order):
            if arm.server not in self.fleet.clients:
                continue
            result = await self.attempt(arm, block, self.wanted.options.max_new_tokens, place)
            if result is not None:
                blocks.add(arm, result)
                self.outcome.keep(arm, result)
                self.report(
                    f"{arm.draft}, {block.condition}, block {block.index + 1}: {arm.name}, "
                    f"{result.tok_per_s:.0f} tok/s"
                )
        self._took_s[block.condition] = time.perf_counter() - started

    async def attempt(
        self, arm: Arm, block: Block, max_new_tokens: int, place: int = 0
    ) -> BlockResult | None:
        """One block, or None where the server failed, which ends that server's arms."""
        try:
            return await self.run_block(arm, block, max_new_tokens, place)
        except ServerError as error:
            self._fail(arm, error)
            return None

    async def run_block(
        self, arm: Arm, block: Block, max_new_tokens: int, place: int
    ) -> BlockResult:
        client = await self._switched(arm)
        await client.flush_cache()
        before = await self._counters(arm, client)
        load = await drive(block, self._answer(client, max_new_tokens))
        after = await self._counters(arm, client)
        counters = after.since(before) if after and before else None
        return BlockResult(block, load.seconds, load.completions, counters, place)

    async def sample(self) -> None:
        """Sampled answers of every arm to the first prompt, many times."""
        concurrency = max(self.wanted.options.concurrency)
        for arm in self.up:
            if arm.is_elsewhere:  # its answers come without token ids
                continue
            self.report(f"{arm.draft}, repeated prompts: {arm.name}")
            try:
                answer = self._answer(await self._switched(arm), sampled.TOKENS)
                prompt = self.wanted.workload.prompts[0]
                self.outcome.samples[arm] = await sampled.draw(answer, prompt, concurrency)
            except ServerError as error:
                self._fail(arm, error)

    def _fail(self, arm: Arm, error: ServerError) -> None:
        self.fleet.fail(arm.server, error)
        _tell(self.fleet, self.outcome, self.screen)

    async def _switched(self, arm: Arm) -> Client | OpenAIClient:
        """The arm's client, its server switched to the arm's policy."""
        client = self.fleet.clients.get(arm.server)
        if client is None:
            raise ServerError(f"server {arm.server} is gone")
        if arm.policy is not None:
            assert isinstance(client, Client)
            await client.set_policy(arm.policy)
        return client

    def _answer(self, client: Client | OpenAIClient, max_new_tokens: int) -> Answer:
        temperature = self.wanted.options.temperature

        async def answer(prompt: Prompt, request_id: str) -> Completion:
            if isinstance(client, OpenAIClient):
                return await client.chat(prompt, max_new_tokens, temperature)
            ids = self.wanted.tokenize(prompt)
            return await client.generate(ids, max_new_tokens, request_id, temperature)

        return answer

    async def _counters(self, arm: Arm, client: Client | OpenAIClient) -> Counters | None:
        if arm.policy is None or isinstance(client, OpenAIClient):
            return None
        state = await client.internal_state()
        try:
            counters = read_counters(state)
        except ValueError as error:
            raise ServerError(f"server {arm.server}: {error}") from None
        if counters is None:
            raise ServerError(f"server {arm.server}: SpecKV stopped being active")
        if state["speckv"].get("policy", arm.policy) != arm.policy:
            raise ServerError(f"server {arm.server} runs another policy than {arm.policy!r}")
        if state["speckv"].get("held"):
            raise ServerError(
                f"server {arm.server}: SpecKV gave up its policy and holds the launch depth "
                f"({state['speckv'].get('failures')})"
            )
        return counters


def drawn_order(arms: Sequence[Arm], block: Block, seed: int) -> list[Arm]:
    """A random order, the same whenever this block of this seed is drawn again."""
    name = str(block.condition).encode()
    rng = np.random.default_rng([seed, block.index + 1, *name])
    return [arms[i] for i in rng.permutation(len(arms))]
