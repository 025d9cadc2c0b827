"""The runner on clients that only count: order, stopping, warm-up."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from sglang_speckv.bench.client import Completion, Load, ServerError
from sglang_speckv.bench.plan import Draft, arms_for
from sglang_speckv.bench.prompts import Prompt
from sglang_speckv.bench.run import WARM_UP_TOKENS, Results, Runner, tokens_per_request

PROMPTS = [Prompt(f"p{i}", "code", "x") for i in range(16)]


class CountingClient:
    def __init__(self, seconds: float = 0.0, active: bool = True) -> None:
        self.policy = ""
        self.rounds: dict[str, int] = {}
        self.calls: list[tuple[str, int]] = []
        self.seconds, self.active = seconds, active

    async def set_policy(self, policy: str) -> None:
        self.policy = policy

    async def flush_cache(self) -> None:
        self.calls.append(("flush", 0))

    async def internal_state(self) -> dict[str, object]:
        total = sum(self.rounds.values())
        return {
            "speckv": {
                "active": self.active,
                "rounds": self.rounds,
                "request_rounds": total,
                "proposed_drafts": total,
                "correct_drafts": total,
            }
        }

    async def run_load(self, prompts: Sequence[object], concurrency: int, tokens: int) -> Load:
        self.calls.append((self.policy, tokens))
        self.rounds = {**self.rounds, "1": self.rounds.get("1", 0) + tokens}
        await asyncio.sleep(self.seconds)
        done = tuple(Completion((1,) * tokens, 0, 0) for _ in prompts)
        return Load(done, 0.5)


def runner(clients: dict[str, CountingClient]) -> Runner:
    arms = arms_for([Draft("eagle3", Path("/e"), "EAGLE3")])
    return Runner(clients, arms, (1, 4), PROMPTS, lambda prompt: [1], lambda line: None)


def clients(**kwargs: object) -> dict[str, CountingClient]:
    return {name: CountingClient(**kwargs) for name in ("none", "eagle3-speckv", "eagle3-ema")}


def measured(seconds: float, limit: float) -> Results:
    results = Results()
    run = runner(clients(seconds=seconds)).measure(results, 8, time.perf_counter() + limit)
    asyncio.run(run)
    return results


def test_every_arm_runs_the_same_blocks():
    results = measured(0.001, 0.1)
    arms = arms_for([Draft("eagle3", Path("/e"), "EAGLE3")])
    for concurrency in (1, 4):
        common = results.common(arms, concurrency)
        runs = [[result.block for result in blocks] for blocks in common.values()]
        assert all(run == runs[0] for run in runs) and len(runs[0]) % 4 == 0
    static = next(arm for arm in arms if arm.name == "static:1")
    assert results.blocks[static, 4][0].counters.rounds == {"1": 8}
    assert results.blocks[static, 4][0].tokens == 32


def test_a_deadline_that_has_passed_still_gives_one_round():
    results = measured(0.0, -1)
    assert {len(blocks) for blocks in results.blocks.values()} == {1}


def test_warm_up_is_short_and_dropped():
    on = clients()
    asyncio.run(runner(on).warm_up())
    assert {tokens for name, tokens in on["none"].calls if name != "flush"} == {WARM_UP_TOKENS}


def test_cache_is_flushed_before_every_block():
    on = clients()
    asyncio.run(runner(on).warm_up())
    names = [name for name, _ in on["eagle3-speckv"].calls]
    assert names[::2] == ["flush"] * 8
    assert sorted(names[1::2]) == sorted(["static:1", "static:3", "static:5", "throughput"] * 2)


def test_an_arm_whose_speckv_goes_off_ends_the_run():
    with pytest.raises(ServerError, match="SpecKV stopped being active"):
        asyncio.run(runner(clients(active=False)).warm_up())


def test_output_length_fits_the_budget():
    assert tokens_per_request(10, 40, 1, (16, 64)) == 64
    assert tokens_per_request(10, 100, 4, (16, 64)) == 40
    assert tokens_per_request(100, 10, 4, (16, 64)) == 16
