"""The runner on clients that only count: order, stopping, warm-up, servers that fail."""

import asyncio
import dataclasses
import io
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from rich.console import Console

from sglang_speckv.ab import runner as runner_module
from sglang_speckv.ab.arms import Draft, arms_for
from sglang_speckv.ab.client import Client, ServerError
from sglang_speckv.ab.comparison import Comparison, Group
from sglang_speckv.ab.forecast import USUAL_SPREAD, WARM_UP_TOKENS, Forecast
from sglang_speckv.ab.journal import BlockResult, Blocks
from sglang_speckv.ab.options import Options
from sglang_speckv.ab.outcome import Outcome
from sglang_speckv.ab.request import Completion, Prompt
from sglang_speckv.ab.runner import Runner, drawn_order
from sglang_speckv.ab.traffic import Block, Condition, Workload
from sglang_speckv.progress import Screen

PROMPTS = [Prompt(f"p{i}", kind, "x") for i in range(8) for kind in ("code", "qa")]
PROMPTS = [Prompt(f"{p.kind}{p.id}", p.kind, "x") for p in PROMPTS]
ARMS = arms_for(Draft("e", "/e", "EAGLE3"), ("none", "static:1", "static:3", "ema", "speckv"))
SERVERS = ("e-none", "e-speckv", "e-ema")


SAID = io.StringIO()
SCREEN = Screen(Console(file=SAID, width=200))


class CountingClient(Client):
    def __init__(self, name: str, seconds: float, active: bool, dies_after: int) -> None:
        super().__init__(name, "http://nowhere")
        self.policy = ""
        self.rounds: dict[str, int] = {}
        self.calls: list[tuple[str, int]] = []
        self.ids: list[str] = []
        self.seconds, self.active, self.dies_after = seconds, active, dies_after
        self.held = False

    async def set_policy(self, policy: str) -> None:
        self.policy = policy

    async def flush_cache(self, attempts: int = 50) -> None:
        self.calls.append(("flush", 0))

    async def internal_state(self) -> dict[str, object]:
        total = sum(self.rounds.values())
        return {
            "speckv": {
                "active": self.active,
                "held": self.held,
                "policy": self.policy,
                "rounds": self.rounds,
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
        arrived = ((0.1, 1), (0.2, count))
        return Completion((1,) * count, tokens=count, e2e_s=0.2, ttft_s=0.1, arrived=arrived)


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


def runner(on: CountingFleet, outcome: Outcome | None = None, **asked: object) -> Runner:
    options = Options(**{"concurrency": (1, 4), "max_new_tokens": 8} | asked)
    wanted = Comparison(
        options=options,
        target="t",
        drafts=[],
        groups=[Group(ARMS, [])],
        workload=Workload(PROMPTS, options.concurrency),
        tokenize=lambda prompt: [1],
        server_flags=[],
        dtype="float32",
    )
    return Runner(wanted, on, ARMS, outcome or Outcome(), lambda line: None, SCREEN)


def measured(on: CountingFleet, limit: float, **asked: object) -> Blocks:
    drive = runner(on, **asked)
    asyncio.run(drive.measure(time.perf_counter() + limit))
    return drive.outcome.blocks


def test_every_arm_runs_the_same_blocks():
    results = measured(fleet(), 60, blocks=4)
    for concurrency in (1, 4):
        ran = [results.of(arm, Condition("mixed", concurrency)) for arm in ARMS]
        runs = [[result.block for result in blocks] for blocks in ran]
        assert all(run == runs[0] for run in runs) and len(runs[0]) == 4
    static = results.of(ARMS[1], Condition("mixed", 4))
    assert static[0].counters.rounds == {"1": 32}


def test_a_deadline_that_has_passed_still_gives_one_block_of_each():
    results = measured(fleet(), -1, minutes=1)
    assert {len(blocks) for blocks in results.ran.values()} == {1}
    assert len(results.ran) == 2 * len(ARMS)


def test_the_time_ends_it():
    started = time.perf_counter()
    results = measured(fleet(seconds=0.001), 0.3, minutes=1)
    assert len(results.of(ARMS[0], Condition("mixed", 1))) > 1
    assert time.perf_counter() - started < 10


def test_request_ids_group_by_class_and_prompt_and_never_repeat():
    on = fleet()
    measured(on, 60, blocks=3)
    ids = [name for client in on.clients.values() for name in client.ids]
    assert len(set(ids)) == len(ids)
    for name in ids:
        kind, prompt, rest = name.split(":")
        assert any((p.kind, p.id) == (kind, prompt) for p in PROMPTS) and rest


def test_what_was_measured_before_is_not_measured_again():
    outcome = Outcome(blocks=measured(fleet(), 60, blocks=2))
    on = fleet()
    asyncio.run(runner(on, outcome, blocks=3).measure(time.perf_counter() + 60))
    assert {len(blocks) for blocks in outcome.blocks.ran.values()} == {3}
    assert sum(name != "flush" for name, _ in on.clients["e-none"].calls) == 1 + 4


def test_warm_up_is_short_and_every_arm_meets_every_load():
    on = fleet()
    forecast = asyncio.run(runner(on, traffic=("mixed", "phases")).warm_up())
    assert {n for name, n in on.clients["e-none"].calls if name != "flush"} == {WARM_UP_TOKENS}
    policies = [name for name, _ in on.clients["e-speckv"].calls if name != "flush"]
    for policy in ("static:1", "throughput"):
        assert policies.count(policy) == 1 + 4, "alike blocks of other traffic are not tried"
    assert list(forecast.conditions.values()) == [2, 2]


def result(seconds: float, ttft_s: float) -> BlockResult:
    block = Workload(PROMPTS, (1,)).block(-1, Condition("mixed", 1))
    done = (Completion((1,) * 16, tokens=16, e2e_s=seconds, ttft_s=ttft_s),)
    return BlockResult(block, seconds, done)


@pytest.mark.parametrize(
    ("minutes", "said"),
    [
        (20, r"about 10 blocks under each load.* known to about 3\.6%"),
        (4, "about 2 blocks.* too few for an interval; ask for 6 minutes or more"),
        (float("inf"), "one block under each load takes about 120 s"),
    ],
)
def test_what_a_run_can_tell_is_said_before_it_starts(minutes: float, said: str):
    """A block of two arms under two conditions: 2 s of prefill and 28 s of 256 tokens, each."""
    forecast = Forecast(max_new_tokens=256)
    for _ in range(2):
        forecast.add(result(2.0 + 28 * 16 / 256, 2.0))
    forecast.conditions.update(dict.fromkeys(forecast.seconds, 2))
    assert re.search(said, forecast.text(60 * minutes)) and USUAL_SPREAD == 0.05


def test_the_order_is_drawn_for_each_block_and_drawn_again_the_same():
    workload = Workload(PROMPTS, (1,))
    blocks = [workload.block(i, c) for c in workload.conditions("mixed") for i in range(2000)]
    orders = [drawn_order(ARMS, block, 0) for block in blocks]
    assert orders == [drawn_order(ARMS, block, 0) for block in blocks]
    assert drawn_order(ARMS, blocks[0], 1) != orders[0]
    places = Counter((arm.name, place) for order in orders for place, arm in enumerate(order))
    before = Counter((a.name, b.name) for order in orders for a, b in pairwise(order))
    assert len(places) == len(ARMS) ** 2 and len(before) == len(ARMS) * (len(ARMS) - 1)
    for count, among in ((places, 5), (before, 5)):
        expected = len(blocks) / among
        assert all(abs(n - expected) < 5 * expected**0.5 for n in count.values())


def test_the_place_of_a_block_is_kept():
    results = measured(fleet(), 60, blocks=3)
    at = Condition("mixed", 4)
    for index in range(3):
        order = {arm.name: results.of(arm, at)[index].place for arm in ARMS}
        block = results.of(ARMS[0], at)[index].block
        assert [arm.name for arm in drawn_order(ARMS, block, 0)] == sorted(order, key=order.get)


def conditions_of(drive: Runner, on: CountingFleet, count: int) -> list[Condition]:
    """What the first blocks run under."""
    real, ran = drive._block, []

    async def counted(block: Block) -> None:
        ran.append(block.condition)
        await real(block)
        if len(ran) == count:
            on.clients.clear()

    drive._block = counted  # type: ignore[method-assign]
    asyncio.run(drive.measure(time.perf_counter() + 60))
    return ran


ONE, FOUR = Condition("mixed", 1), Condition("mixed", 4)


@pytest.mark.parametrize("wide", [ONE, FOUR])
def test_time_goes_where_the_interval_is_widest(monkeypatch: pytest.MonkeyPatch, wide: Condition):
    """First every load has blocks enough for one, the longest first, and every class once."""
    monkeypatch.setattr(runner_module, "widest", lambda blocks, arms, at: float(at == wide))
    on = fleet()
    ran = conditions_of(runner(on, minutes=1), on, 12)
    assert ran[:7] == [FOUR, ONE, ONE, FOUR, ONE, FOUR, ONE]
    assert set(ran[7:]) == {wide}


def test_servers_one_after_another_give_every_load_as_many_blocks(monkeypatch: pytest.MonkeyPatch):
    """Each must run the same blocks, so none may go where its own interval is widest."""
    monkeypatch.setattr(runner_module, "widest", lambda *_: pytest.fail("asked"))
    on = fleet()
    drive = runner(on, minutes=1)
    apart = [Group([arm], []) for arm in ARMS]
    drive.wanted = dataclasses.replace(drive.wanted, groups=apart)
    ran = Counter(conditions_of(drive, on, 30))
    assert ran == {FOUR: 13, ONE: 17}, "as 3 to 4, which is two cycles of two classes"


def test_a_hole_is_not_filled():
    """The next block is one that no arm has run: an old one would pair two times of the machine."""
    outcome = Outcome(blocks=measured(fleet(), 60, blocks=2))
    del outcome.blocks.ran[ARMS[0], FOUR][0]
    on = fleet()
    asyncio.run(runner(on, outcome, blocks=2).measure(time.perf_counter() + 60))
    assert outcome.blocks.indices(ARMS[0], FOUR) == {1, 2}
    assert all(outcome.blocks.indices(arm, FOUR) == {0, 1, 2} for arm in ARMS[1:])


def test_an_arm_that_holds_the_launch_depth_is_out():
    on = fleet()
    on.clients["e-speckv"].held = True
    measured(on, 60, blocks=1)
    assert "SpecKV gave up its policy and holds the launch depth" in on.failures["e-speckv"]


def test_phases_run_whole_cycles_of_their_classes():
    results = measured(fleet(), 60, blocks=4, traffic=("phases",))
    kinds = [b.block.prompts[0].kind for b in results.of(ARMS[0], Condition("phases", 1))]
    assert kinds == ["code", "qa"] * 2


def test_cache_is_flushed_before_every_block():
    on = fleet()
    measured(on, 60, blocks=1)
    names = [name for name, _ in on.clients["e-none"].calls]
    assert names in (["flush", "", "flush", "", "", "", ""], ["flush", *[""] * 4, "flush", ""])


def test_a_server_that_fails_takes_only_its_arms_along():
    on = fleet(dying="e-ema", dies_after=6)
    results = measured(on, 60, blocks=4)
    ema = next(arm for arm in ARMS if arm.name == "ema")
    assert len(results.of(ema, Condition("mixed", 1))) < 4
    assert len(results.of(ARMS[0], Condition("mixed", 1))) == 4
    assert on.failures == {"e-ema": "server e-ema: gone"}
    assert "out of the comparison: server e-ema: gone" in SAID.getvalue(), "said at once"


def test_an_arm_whose_speckv_goes_off_is_out():
    on = fleet(active=False)
    results = measured(on, 60, blocks=1)
    assert "SpecKV stopped being active" in on.failures["e-speckv"]
    assert {arm.name for arm, _ in results.ran} == {"none", "ema"}


def test_when_all_servers_fail_it_ends():
    on = fleet()
    on.clients.clear()
    assert not measured(on, 60, blocks=4).ran
