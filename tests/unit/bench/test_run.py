"""The runner on clients that only count: order, stopping, warm-up, servers that fail."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from sglang_speckv.bench.arms import Draft, arms_for
from sglang_speckv.bench.client import Client
from sglang_speckv.bench.connection import ServerError
from sglang_speckv.bench.load import Completion
from sglang_speckv.bench.pace import WARM_UP_TOKENS, Pace, tokens_per_request
from sglang_speckv.bench.prompts import Prompt
from sglang_speckv.bench.results import BlockResult, Results
from sglang_speckv.bench.run import Runner
from sglang_speckv.bench.traffic import Condition, Workload

PROMPTS = [Prompt(f"p{i}", kind, "x") for i in range(8) for kind in ("code", "qa")]
PROMPTS = [Prompt(f"{p.kind}{p.id}", p.kind, "x") for p in PROMPTS]
ARMS = arms_for([Draft("e", "/e", "EAGLE3")], ("none", "static:1", "static:3", "ema", "speckv"))
SERVERS = ("none", "e-speckv", "e-ema")


class CountingClient(Client):
    def __init__(self, name: str, seconds: float, active: bool, dies_after: int) -> None:
        super().__init__(name, "http://nowhere")
        self.policy = ""
        self.rounds: dict[str, int] = {}
        self.calls: list[tuple[str, int]] = []
        self.ids: list[str] = []
        self.seconds, self.active, self.dies_after = seconds, active, dies_after

    async def set_policy(self, policy: str) -> None:
        self.policy = policy

    async def flush_cache(self, attempts: int = 50) -> None:
        self.calls.append(("flush", 0))

    async def internal_state(self) -> dict[str, object]:
        total = sum(self.rounds.values())
        return {
            "speckv": {
                "active": self.active,
                "policy": self.policy,
                "rounds": self.rounds,
                "request_rounds": total,
                "proposed_drafts": total,
                "correct_drafts": total,
            }
        }

    async def generate(
        self, input_ids: Sequence[int], count: int, request_id: str = "", temperature: float = 0
    ) -> Completion:
        self.calls.append((self.policy, count))
        self.ids.append(request_id)
        if len(self.ids) > self.dies_after:
            raise ServerError(f"server {self.name}: gone")
        self.rounds = {**self.rounds, "1": self.rounds.get("1", 0) + count}
        await asyncio.sleep(self.seconds)
        return Completion((1,) * count, tokens=count, latency_s=0.2, first_s=0.1)


@dataclass
class CountingFleet:
    clients: dict[str, CountingClient]
    failures: dict[str, str] = field(default_factory=dict)

    def fail(self, server: str, error: ServerError) -> None:
        del self.clients[server]
        self.failures[server] = str(error)


def fleet(
    seconds: float = 0.0, active: bool = True, dying: str = "", dies_after: int = 0
) -> CountingFleet:
    return CountingFleet(
        {
            name: CountingClient(name, seconds, active, dies_after if name == dying else 10**9)
            for name in SERVERS
        }
    )


def runner(on: CountingFleet, requests: int = 1) -> Runner:
    workload = Workload(PROMPTS, (1, 4), requests)
    traffic = [workload.conditions("mixed")]
    return Runner(on, ARMS, workload, traffic, lambda prompt: [1], lambda line: None)


def measured(on: CountingFleet, limit: float, rounds: int | None = None) -> Results:
    results = Results()
    run = runner(on).measure(results, 8, time.perf_counter() + limit, rounds)
    asyncio.run(run)
    return results


def test_every_arm_runs_the_same_blocks():
    results = measured(fleet(), 60, rounds=4)
    for concurrency in (1, 4):
        common = results.common(ARMS, Condition("mixed", concurrency))
        runs = [[result.block for result in blocks] for blocks in common.values()]
        assert all(run == runs[0] for run in runs) and len(runs[0]) == 4
    static = results.of(ARMS[1], Condition("mixed", 4))
    assert static[0].counters.rounds == {"1": 32}
    assert static[0].tokens == 32


def test_a_deadline_that_has_passed_still_gives_one_block_of_each():
    results = measured(fleet(), -1)
    assert {len(blocks) for blocks in results.blocks.values()} == {1}
    assert len(results.blocks) == 2 * len(ARMS)


def test_the_time_ends_it():
    started = time.perf_counter()
    results = measured(fleet(seconds=0.001), 0.3)
    assert len(results.of(ARMS[0], Condition("mixed", 1))) > 1
    assert time.perf_counter() - started < 10


def test_request_ids_group_by_class_and_prompt_and_never_repeat():
    on = fleet()
    measured(on, 60, rounds=3)
    ids = [name for client in on.clients.values() for name in client.ids]
    assert len(set(ids)) == len(ids)
    for name in ids:
        kind, prompt, rest = name.split(":")
        assert any((p.kind, p.id) == (kind, prompt) for p in PROMPTS) and rest


def test_what_was_measured_before_is_not_measured_again():
    first = measured(fleet(), 60, rounds=2)
    on = fleet()
    run = runner(on).measure(first, 8, time.perf_counter() + 60, 3)
    asyncio.run(run)
    assert {len(blocks) for blocks in first.blocks.values()} == {3}
    assert sum(name != "flush" for name, _ in on.clients["none"].calls) == 1 + 4


def test_warm_up_is_short_and_learners_meet_every_load():
    on = fleet()
    pace = asyncio.run(runner(on).warm_up())
    assert {n for name, n in on.clients["none"].calls if name != "flush"} == {WARM_UP_TOKENS}
    policies = [name for name, _ in on.clients["e-speckv"].calls if name != "flush"]
    assert policies.count("static:1") == 4  # the largest load only
    assert policies.count("throughput") == 4 + 1
    assert pace.fixed_s > 0


def test_cache_is_flushed_before_every_block():
    on = fleet()
    measured(on, 60, rounds=1)
    names = [name for name, _ in on.clients["none"].calls]
    assert names in (["flush", "", "flush", "", "", "", ""], ["flush", *[""] * 4, "flush", ""])


@pytest.mark.parametrize("spare", [False, True])
def test_arms_far_behind_run_less_where_time_is_short(spare: bool):
    on, results = fleet(), Results()
    run = runner(on)
    run.spare = spare
    done = (Completion((1,) * 8, tokens=8),)
    for condition in run.traffic[0]:
        for index in range(2):
            for arm in ARMS:
                seconds = 2.0 if arm.name in ("static:3", "ema") else 1.0
                block = run.workload.block(index, condition)
                results.add(arm, BlockResult(block, seconds, done))
    asyncio.run(run.measure(results, 8, time.perf_counter() + 60, 3))
    ran = {arm.name: len(results.of(arm, Condition("mixed", 4))) for arm in ARMS}
    assert ran == {"none": 3, "static:1": 3, "static:3": 2 if spare else 3, "ema": 3, "speckv": 3}


def test_a_server_that_fails_takes_only_its_arms_along():
    on = fleet(dying="e-ema", dies_after=6)
    results = measured(on, 60, rounds=4)
    ema = next(arm for arm in ARMS if arm.name == "ema")
    assert len(results.of(ema, Condition("mixed", 1))) < 4
    assert len(results.of(ARMS[0], Condition("mixed", 1))) == 4
    assert on.failures == {"e-ema": "server e-ema: gone"}


def test_an_arm_whose_speckv_goes_off_is_out():
    on = fleet(active=False)
    results = measured(on, 60, rounds=1)
    assert "SpecKV stopped being active" in on.failures["e-speckv"]
    assert {arm.name for arm, _ in results.blocks} == {"none", "ema"}


def test_when_all_servers_fail_it_ends():
    on = fleet()
    on.clients.clear()
    assert not measured(on, 60, rounds=4).blocks


@pytest.mark.parametrize(
    ("budget", "rounds", "length"), [(40, 1, 64), (100, 4, 40), (10, 1, 16), (5, 4, 16)]
)
def test_output_length_fits_the_budget(budget: float, rounds: int, length: int):
    assert tokens_per_request(Pace(5.0, 0.5), budget, rounds, (16, 64)) == length
