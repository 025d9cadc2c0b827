"""Running a comparison: servers up, every arm in turn, block by block, until the time is spent.

Each block is run by every arm before the next block begins, in an order that is drawn anew for each
block, so that no arm is favoured by its place or by the arm before it. Conditions take turns until
each has blocks enough for an interval; from then on the next block goes where the interval is
widest.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sglang_speckv.ab import sampled
from sglang_speckv.ab.arms import NO_DRAFT, Arm, ServerSpec
from sglang_speckv.ab.client import Client, ServerError
from sglang_speckv.ab.comparison import Comparison
from sglang_speckv.ab.counters import Counters, Reliability, read_counters, read_reliability
from sglang_speckv.ab.forecast import WARM_UP_TOKENS, Forecast, shape
from sglang_speckv.ab.intervals import MIN_BLOCKS
from sglang_speckv.ab.journal import BlockResult, Results
from sglang_speckv.ab.load import Answer, Completion, drive
from sglang_speckv.ab.lossless import TextCheck, Verdict, tie_gap
from sglang_speckv.ab.openai_client import OpenAIClient
from sglang_speckv.ab.prompts import Prompt
from sglang_speckv.ab.servers import Fleet, ServerFacts, fleet_of
from sglang_speckv.ab.traffic import Block, Condition
from sglang_speckv.progress import Report, Screen

_CLOSING_S = 8.0  # judging the answers, the report, ending the servers

Width = Callable[[Results, Condition], float]
"""How wide the widest interval under a condition is, in logs."""


@dataclass
class Outcome:
    """Filled while it runs, so that what an interrupted run measured is there.

    ``failures`` are servers that are out and why. ``keep`` gets every finished block.
    """

    results: Results = field(default_factory=Results)
    verdicts: dict[tuple[Arm, Condition], Verdict] = field(default_factory=dict)
    samples: dict[Arm, sampled.Samples] = field(default_factory=dict)
    reliability: dict[Arm, Reliability] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    facts: dict[str, ServerFacts] = field(default_factory=dict)
    ready_s: float = 0.0
    interrupted: bool = False
    keep: Callable[[Arm, BlockResult], None] = lambda arm, result: None

    def reference_of(self, arm: Arm) -> Arm | None:
        """The ``none`` whose sampled answers ``arm``'s are compared with."""
        nones = (a for a in self.samples if a.name == "none" and a.draft in (NO_DRAFT, arm.draft))
        return next((none for none in nones if none != arm), None)

    @property
    def p_values(self) -> dict[Arm, float]:
        """Of each arm's sampled answers being drawn from the target's distribution."""
        pairs = {arm: self.reference_of(arm) for arm in self.samples}
        return {
            arm: p
            for arm, none in pairs.items()
            if none and (p := sampled.p_value(self.samples[arm], self.samples[none])) is not None
        }


async def run(wanted: Comparison, outcome: Outcome, width: Width, screen: Screen) -> None:
    """All of it; servers end with it, also when it is interrupted or terminated."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    deadline = time.perf_counter() + wanted.options.seconds - _CLOSING_S
    arms_left = len(wanted.arms)
    for group in wanted.groups:
        names = {spec.name for spec in group}
        arms = [arm for arm in wanted.arms if arm.server in names]
        share, arms_left = len(arms) / arms_left, arms_left - len(arms)
        until = time.perf_counter() + share * (deadline - time.perf_counter())
        await _run_group(wanted, group, arms, until, outcome, width, screen)


async def _run_group(
    wanted: Comparison,
    group: Sequence[ServerSpec],
    arms: Sequence[Arm],
    until: float,
    outcome: Outcome,
    width: Width,
    screen: Screen,
) -> None:
    flags = ("--model-path", wanted.target, *wanted.server_flags)
    started = time.perf_counter()
    with screen.status(f"starting {len(group)} SGLang server(s)") as report:
        async with fleet_of(group, flags, wanted.logs, wanted.options) as fleet:
            outcome.ready_s += time.perf_counter() - started
            known = [facts.settings for facts in outcome.facts.values() if facts.settings]
            await fleet.prove(arms, next(iter(known), None), wanted.options.own_memory)
            outcome.facts |= fleet.facts
            _tell(fleet, outcome, screen)
            runner = Runner(wanted, fleet, arms, outcome, width, report)
            try:
                screen.say((await runner.warm_up()).text(until - time.perf_counter()))
                await runner.measure(until)
                if wanted.options.temperature > 0:
                    await runner.sample()
            finally:
                fleet.note_memory()
                _tell(fleet, outcome, screen)
            if wanted.options.temperature == 0:
                report("comparing the answers")
                await _judge(wanted, fleet, outcome)
                _tell(fleet, outcome, screen)


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
        ours = [a for a in wanted.arms if none.draft in (NO_DRAFT, a.draft) and a != none]
        for arm in ours:
            for condition in outcome.results.conditions():
                pair = outcome.results.common([none, arm], condition)
                if pair[arm] and not arm.name.startswith("url:"):
                    try:
                        verdict = await check.verdict(pair[arm], pair[none])
                    except ServerError as error:
                        return fleet.fail(none.server, error)
                    outcome.verdicts[arm, condition] = verdict


@dataclass
class Runner:
    """Drives the arms of the servers that are up now."""

    wanted: Comparison
    fleet: Fleet
    arms: Sequence[Arm]
    outcome: Outcome
    width: Width
    report: Report
    _took_s: dict[Condition, float] = field(default_factory=dict)

    @property
    def up(self) -> list[Arm]:
        """Arms whose servers have not failed."""
        return [arm for arm in self.arms if arm.server in self.fleet.clients]

    async def warm_up(self) -> Forecast:
        """One short block of every arm at every load, dropped; how long real ones will take."""
        forecast = Forecast(self.wanted.options.max_new_tokens)
        for condition in [c for group in self.wanted.traffic for c in group]:
            block = self.wanted.workload.block(-1, condition)
            forecast.conditions[shape(block)] += 1
            if forecast.conditions[shape(block)] > 1:
                continue
            for arm in self.up:
                self.report(f"warm-up: {label(arm, condition)}")
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
            index = self._done(condition)
            wanted = index == 0 and condition in first
            if not wanted and time.perf_counter() + self._expected_s(condition) > until:
                spent.add(condition)
                continue
            await self._block(self.wanted.workload.block(index, condition))

    def _next(self, spent: set[Condition]) -> Condition | None:
        """Where the next block is worth most: conditions in turn, each its whole cycle of classes,
        until all have blocks enough for an interval; then where the interval is widest."""
        options, found = self.wanted.options, []
        for rank, condition in enumerate(c for group in self.wanted.traffic for c in group):
            done, cycle = self._done(condition), self.wanted.workload.cycle(condition.traffic)
            if condition in spent or done >= options.most_blocks:
                continue
            begun = done % cycle != 0
            enough = done >= max(MIN_BLOCKS, cycle)
            value = self.width(self.outcome.results, condition) if enough else -done / cycle
            found.append(((begun, not enough, value, -rank), condition))
        return max(found, default=(None, None), key=lambda pair: pair[0])[1]

    def _done(self, condition: Condition) -> int:
        """Blocks that every arm has run, or was not up for."""
        return min((len(self.outcome.results.of(arm, condition)) for arm in self.up), default=0)

    def _expected_s(self, condition: Condition) -> float:
        """Seconds of all arms' blocks as the last ones took, or some of the same load; else 0."""
        alike = [s for c, s in self._took_s.items() if c.concurrency == condition.concurrency]
        return self._took_s.get(condition, max(alike, default=0.0))

    async def _block(self, block: Block) -> None:
        started, results = time.perf_counter(), self.outcome.results
        order = drawn_order(self.arms, block, self.wanted.options.seed)
        for place, arm in enumerate(order):
            if arm.server not in self.fleet.clients or results.has(arm, block):
                continue
            result = await self.attempt(arm, block, self.wanted.options.max_new_tokens, place)
            if result is not None:
                results.add(arm, result)
                self.outcome.keep(arm, result)
                self.report(
                    f"{block.condition}, block {block.index + 1}: {label(arm, block.condition)}, "
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
            self.fleet.fail(arm.server, error)
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
            self.report(f"repeated prompts: {arm.name}")
            try:
                answer = self._answer(await self._switched(arm), sampled.TOKENS)
                prompt = self.wanted.workload.prompts[0]
                self.outcome.samples[arm] = await sampled.draw(answer, prompt, concurrency)
            except ServerError as error:
                self.fleet.fail(arm.server, error)

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
        counters = read_counters(state, arm.server)
        if counters is None:
            raise ServerError(f"server {arm.server}: SpecKV stopped being active")
        if state["speckv"].get("policy", arm.policy) != arm.policy:
            raise ServerError(f"server {arm.server} runs another policy than {arm.policy!r}")
        self.outcome.reliability[arm] = read_reliability(state)
        return counters


def drawn_order(arms: Sequence[Arm], block: Block, seed: int) -> list[Arm]:
    """A random order, the same whenever this block of this seed is drawn again."""
    name = str(block.condition).encode()
    rng = np.random.default_rng([seed, block.index + 1, *name])
    return [arms[i] for i in rng.permutation(len(arms))]


def label(arm: Arm, condition: Condition) -> str:
    name = arm.name if arm.draft == NO_DRAFT else f"{arm.draft} {arm.name}"
    return f"{name} at {condition.load}"
