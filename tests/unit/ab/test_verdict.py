"""What is concluded from blocks: cells, sweeps, checks, the answer, and their JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from sglang_speckv.ab.answer import answers
from sglang_speckv.ab.arms import Arm, Draft
from sglang_speckv.ab.comparison import Comparison, Group
from sglang_speckv.ab.counters import Counters
from sglang_speckv.ab.journal import BlockResult, Blocks
from sglang_speckv.ab.lossless import Verdict
from sglang_speckv.ab.options import Goodput, Options
from sglang_speckv.ab.outcome import Outcome
from sglang_speckv.ab.request import Completion, Prompt
from sglang_speckv.ab.results import describe, last_line
from sglang_speckv.ab.traffic import Block, Condition, Segment, Workload
from sglang_speckv.ab.verdict import judge, percentiles, versus, widest

NONE = Arm("eagle3", "none", "eagle3-none")
STATIC1 = Arm("eagle3", "static:1", "eagle3-speckv", "static:1")
STATIC3 = Arm("eagle3", "static:3", "eagle3-speckv", "static:3")
FRESH3 = Arm("eagle3", "fresh:3", "eagle3-fresh3")
EMA = Arm("eagle3", "ema", "eagle3-ema")
SPECKV = Arm("eagle3", "speckv", "eagle3-speckv", "throughput")
TWICE = Arm("eagle3", "speckv#2", "eagle3-speckv", "throughput#2")
ONE, FOUR = Condition("mixed", 1), Condition("mixed", 4)
SECONDS = {NONE: 2.0, STATIC1: 1.6, STATIC3: 1.5, EMA: 1.55, SPECKV: 1.4}
"""Of a request, in which all of its 64 tokens come after the first, at an even rate."""


def completion(seconds: float, verify_ct: int = 0, tokens: int = 64) -> Completion:
    arrived = ((0.1, 1), (seconds, tokens))
    return Completion(
        tuple(range(tokens)), verify_ct, verify_ct, tokens, seconds, 0.1, arrived=arrived
    )


def blocks(
    arm: Arm, seconds: float, at: Condition = ONE, count: int = 4, drift: float = 0.01
) -> list[BlockResult]:
    steps = {"static:1": 1, "static:3": 3, "throughput": 3}.get(arm.policy or "")
    recent = tuple((i * 0.1, steps or 0, 1) for i in range(30))
    counters = None if steps is None else Counters({str(steps): 30}, 30 * steps, 30, 0, recent)
    verifies = 0 if arm == NONE else 30
    slots = at.concurrency or 2
    results = []
    for i in range(count):
        prompts = tuple(Prompt(f"p{i % 2}-{n}", "code", "x") for n in range(slots))
        done = (completion(seconds * (1 + drift * i), verifies),) * slots
        block = Block(i, at, (Segment(slots, prompts),))
        results.append(BlockResult(block, done[0].e2e_s, done, counters, place=i))
    return results


def outcome(*at: Condition, seconds: dict[Arm, float] = SECONDS, count: int = 4) -> Outcome:
    found = Outcome()
    for condition in at or (ONE,):
        for arm, each in seconds.items():
            for result in blocks(arm, each, condition, count):
                found.blocks.add(arm, result)
            if arm != NONE:
                found.verdicts[arm, condition] = Verdict(4, 4, (), 1e-3)
    return found


def comparison(found: Outcome, **asked: object) -> Comparison:
    arms = list(dict.fromkeys(arm for arm, _ in found.blocks.ran))
    conditions = found.blocks.conditions()
    concurrency = tuple(c.concurrency for c in conditions if c.concurrency)
    traffic = tuple(dict.fromkeys(c.traffic for c in conditions))
    rate = tuple(c.rate for c in conditions if c.rate)
    names = tuple(arm.name for arm in arms)
    options = Options(
        **{"arms": names, "concurrency": concurrency, "traffic": traffic, "rate": rate} | asked
    )
    return Comparison(
        options=options,
        target="target",
        drafts=[Draft("eagle3", "/head", "EAGLE3")],
        groups=[Group(arms, [])],
        workload=Workload([], options.concurrency),
        tokenize=lambda prompt: [1],
        server_flags=[],
        dtype="float32",
    )


def judged(found: Outcome, **asked: object) -> dict[str, Any]:
    wanted = comparison(found, **asked)
    return judge(wanted.arms, wanted.traffic, found, wanted.options.goodput)


def cells_of(found: Outcome, at: Condition = ONE, **asked: object) -> dict[str, Any]:
    cells = judged(found, **asked)["cells"]
    key = (at.traffic, at.concurrency, at.rate)
    return {c["arm"]: c for c in cells if (c["traffic"], c["concurrency"], c["rate"]) == key}


def answer(found: Outcome) -> str:
    (line,) = answers(judged(found), {})
    return line


def rate(arm: Arm) -> float:
    """tok/s after the first token."""
    return 63 / (SECONDS[arm] - 0.1)


def test_ratios_are_raw_and_to_every_fixed_setting():
    cells = cells_of(outcome())
    speckv = cells["speckv"]
    assert set(speckv["over"]) == {"none", "static:1", "static:3", "ema"}
    assert cells["none"]["tok_per_s"] == pytest.approx(rate(NONE), rel=0.02)
    for name, over in speckv["over"].items():
        raw = speckv["tok_per_s"] / cells[name]["tok_per_s"]
        assert over["ratio"] == pytest.approx(raw, abs=1e-3)
        assert over["interval"][0] <= over["ratio"] <= over["interval"][1]
    assert speckv["best_fixed"] == "static:3"
    assert speckv["vs_best_fixed"] == speckv["over"]["static:3"]["ratio"]
    assert cells["static:3"]["vs_best_fixed"] is None, "it is the best one"


def test_the_lower_bound_is_the_least_of_all_fixed_settings():
    speckv = cells_of(outcome())["speckv"]
    lows = {n: speckv["over"][n]["interval"][0] for n in ("none", "static:1", "static:3")}
    assert speckv["lower_bound"] == min(lows.values()) == lows["static:3"]
    assert cells_of(outcome(count=2))["speckv"]["lower_bound"] is None


def test_a_stock_server_is_a_fixed_setting_and_a_second_time_is_not():
    seconds = SECONDS | {FRESH3: 1.3, TWICE: 1.4, replace(STATIC1, name="static:1#2"): 1.6}
    speckv = cells_of(outcome(seconds=seconds))["speckv"]
    assert set(speckv["over"]) == {"none", "static:1", "static:3", "fresh:3", "ema"}
    assert speckv["best_fixed"] == "fresh:3"


def test_a_server_elsewhere_is_compared_with_and_is_no_fixed_setting():
    other = Arm("eagle3", "url:other=http://h:1", "url:other")
    speckv = cells_of(outcome(seconds=SECONDS | {other: 1.0}))["speckv"]
    assert speckv["over"][other.name]["ratio"] < 1 and speckv["best_fixed"] == "static:3"


def test_what_a_cell_says():
    cells = cells_of(outcome())
    none, static1, ema, speckv = (cells[name] for name in ("none", "static:1", "ema", "speckv"))
    assert none["accept_length"] is None and none["steps"] is None and none["active"] is None
    assert (static1["accept_rate"], static1["accept_length"]) == (1.0, 2.0)
    assert static1["steps"] == {"1": 1.0} and static1["active"] is True
    assert (ema["accept_rate"], ema["accept_length"], ema["lossless"]) == (None, 2.0, True)
    assert speckv["interval"][0] <= speckv["vs_best_fixed"] <= speckv["interval"][1]
    assert speckv["lower_bound"] <= speckv["vs_best_fixed"] and speckv["blocks"] == 4
    assert speckv["whole_tok_per_s"] == pytest.approx(64 / 1.4, rel=0.02), "with its prefill"


def test_all_of_a_run_is_json():
    found = outcome(ONE, FOUR)
    results = describe(comparison(found), found, 60.0)
    plain = json.loads(msgspec.json.encode(results))
    cell = plain["cells"][-1]
    assert cell["ttft_s"]["p50"] == 0.1 and cell["tpot_s"]["p50"] > 0 and cell["e2e_s"]["p99"] > 1
    assert [b["place"] for b in cell["block_results"]] == [0, 1, 2, 3]
    assert all(b["has_window"] for b in cell["block_results"])
    line = json.loads(last_line(results, {}))
    assert {"answers", "none_scheduling", "cells", "sweep", "checks", "seconds"} <= line.keys()
    assert {"blocks", "lower_bound", "steps", "lossless"} <= line["cells"][0].keys()
    assert "block_results" not in line["cells"][0]
    assert not results["code_changed"] and results["provenance"] == found.provenance


def test_a_change_of_the_code_meanwhile_is_told():
    found = outcome()
    found.provenance["code"] = {"policy": "another", "srt": "other"}
    assert describe(comparison(found), found, 1.0)["code_changed"]


def test_without_a_fixed_arm_there_is_no_ratio():
    cell = cells_of(outcome(seconds={SPECKV: 1.4}))["speckv"]
    assert cell["vs_best_fixed"] is None and cell["lower_bound"] is None


@pytest.mark.parametrize("arm", [EMA, STATIC3, NONE])
@pytest.mark.parametrize("blocks", [1, 2])
def test_an_arm_whose_server_failed_costs_the_others_nothing(arm: Arm, blocks: int):
    """Each ratio is over the blocks that its two arms ran, and a fixed setting without blocks
    enough for an interval is none that anybody is said to be at least a part of."""
    found = outcome()
    del found.blocks.ran[arm, ONE][blocks:]
    cells = cells_of(found)
    speckv = cells["speckv"]
    assert cells[arm.name]["blocks"] == blocks and speckv["blocks"] == 4
    kept = {"none", "static:1", "static:3"} - {arm.name}
    assert all(speckv["over"][name]["interval"] for name in kept)
    assert speckv["lower_bound"] is not None and speckv["best_fixed"] in kept
    assert "at least" in answer(found)


def test_a_run_that_ended_in_the_middle_of_a_block_has_lost_nobody():
    """One setting had run its third one already, the slowest."""
    found = outcome(count=3)
    for arm in (STATIC1, STATIC3, SPECKV):
        del found.blocks.ran[arm, ONE][2:]
    assert cells_of(found)["speckv"]["best_fixed"] == "static:3"


def test_the_best_setting_is_that_of_blocks_in_common():
    """static:1 ran two easy blocks more."""
    found = outcome()
    for index in (4, 5):
        (easy,) = blocks(STATIC1, 0.5, count=1)
        block = replace(easy.block, index=index)
        found.blocks.add(STATIC1, replace(easy, block=block))
    cells = cells_of(found)
    assert cells["static:1"]["tok_per_s"] > cells["static:3"]["tok_per_s"]
    assert cells["speckv"]["best_fixed"] == "static:3"


def test_an_arm_of_which_nothing_came_within_the_window_has_no_ratio():
    found = outcome()
    flat = [
        replace(
            ran,
            completions=tuple(
                msgspec.structs.replace(
                    done, arrived=((0.05, done.tokens), (done.e2e_s, done.tokens))
                )
                for done in ran.completions
            ),
        )
        for ran in found.blocks.ran[EMA, ONE]
    ]
    found.blocks.ran[EMA, ONE] = flat
    results = describe(comparison(found), found, 1.0)
    cells = {cell["arm"]: cell for cell in results["cells"]}
    assert cells["ema"]["tok_per_s"] == 0 and "ema" not in cells["speckv"]["over"]
    assert "ema" not in results["sweep"]["eagle3"]["mixed"]["arms"]


def test_only_blocks_that_both_ran_are_compared():
    found = outcome()
    slow = blocks(SPECKV, 100.0)[3]
    found.blocks.ran[SPECKV, ONE][3] = slow
    found.blocks.ran[STATIC3, ONE].pop()
    over = versus(found.blocks, SPECKV, STATIC3, [(ONE, ONE)])
    assert over is not None and over.value == pytest.approx(1.4 / 1.3, rel=0.01)


def test_open_loops_count_the_requests_own_time_and_stand_in_no_sweep():
    at = Condition("mixed", None, 2.0)
    found = outcome(ONE, at)
    assert cells_of(found, at)["speckv"]["tok_per_s"] == pytest.approx(64 / 1.4, rel=0.03)
    assert judged(found)["sweep"]["eagle3"]["mixed"]["loads"] == 1


def test_goodput_is_requests_per_second_that_keep_the_objective():
    found = outcome(FOUR)
    seconds = sum(result.seconds for result in found.blocks.of(SPECKV, FOUR))
    for objective, kept in (
        (Goodput(ttft=200, e2e=2000), 16),
        (Goodput(e2e=1405), 4),
        (Goodput(ttft=50), 0),
        (Goodput(tpot=1), 0),
    ):
        cell = cells_of(found, FOUR, goodput=objective)["speckv"]
        assert cell["goodput_per_s"] == pytest.approx(kept / seconds, abs=1e-3)
    assert cells_of(found, FOUR)["speckv"]["goodput_per_s"] is None


def moving() -> Outcome:
    """One request takes 1 s; four at once take 2 s each. The second one draws in half."""
    at = Condition("sweep", 4)
    found = Outcome()
    for arm, speed in ((NONE, 1.0), (SPECKV, 2.0)):
        for i in range(3):
            segments = tuple(
                Segment(n, tuple(Prompt(f"p{i}-{k}-{j}", "qa", "x") for j in range(n)))
                for k, n in enumerate((1, 4, 1))
            )
            starts = (0.0, *(10.0,) * 4, 20.0)
            done = [
                msgspec.structs.replace(completion(s / speed), sent_s=start)
                for s, start in zip((1.1, *(2.1,) * 4, 1.1), starts, strict=True)
            ]
            recent = ((0.0, 5, 1), (1.0, 5, 1), (2.0, 1, 4), (4.0, 1, 3), (5.0, 5, 1))
            counters = Counters({"1": 2, "5": 3}, 9, 9, 0, recent) if arm == SPECKV else None
            found.blocks.add(arm, BlockResult(Block(i, at, segments), 9.0, tuple(done), counters))
    return found


def test_a_moving_load_has_a_row_for_each_of_its_loads():
    found = moving()
    asked = {"concurrency": (1, 4)}
    one, four = (cells_of(found, Condition("sweep", n), **asked) for n in (1, 4))
    assert one["none"]["tok_per_s"] == pytest.approx(63 / 1.0)
    assert four["none"]["tok_per_s"] == pytest.approx(4 * 63 / 2.0)
    assert four["none"]["whole_tok_per_s"] == pytest.approx(4 * 64 / 2.1, abs=0.01)
    requests = [sum(len(b["prompts"]) for b in c["none"]["block_results"]) for c in (one, four)]
    assert requests == [6, 12]
    assert one["speckv"]["steps"] == {"5": 1.0} and four["speckv"]["steps"] == {"1": 1.0}
    assert judged(found, **asked)["sweep"]["eagle3"]["sweep"]["loads"] == 2


def test_goodput_under_a_moving_load_is_of_that_loads_own_time():
    asked = {"concurrency": (1, 4), "goodput": Goodput(ttft=200)}
    one, four = (cells_of(moving(), Condition("sweep", n), **asked) for n in (1, 4))
    assert one["none"]["goodput_per_s"] == pytest.approx(1 / 1.1, abs=1e-3)
    assert four["none"]["goodput_per_s"] == pytest.approx(4 / 2.1, abs=1e-3)


def test_the_loads_of_a_moving_block_share_it(monkeypatch: pytest.MonkeyPatch):
    """What disturbs a block disturbs all of its loads: they are one cluster."""
    from sglang_speckv.ab import verdict

    seen: list[Any] = []
    real = verdict.ratio
    monkeypatch.setattr(verdict, "ratio", lambda cells, *a: seen.append(cells) or real(cells, *a))
    judged(moving(), concurrency=(1, 4))
    one, four = next(cells for cells in seen if len(cells) == 2)
    assert set(one.block) == set(four.block) == {f"sweep, 4 requests {i}" for i in range(3)}
    judged(outcome(ONE, FOUR))
    one, four = seen[-1]
    assert not set(one.block) & set(four.block)


def test_the_whole_sweep():
    """static:3 is best at one request, none at four and over both."""
    found = outcome(ONE)
    at_four = SECONDS | {NONE: 1.0, SPECKV: 1.0}
    for arm, seconds in at_four.items():
        for result in blocks(arm, seconds, FOUR):
            found.blocks.add(arm, result)
    sweep = judged(found)["sweep"]["eagle3"]["mixed"]
    speckv = sweep["arms"]["speckv"]
    assert sweep["best_fixed"] == speckv["best_fixed"] == "none"
    assert speckv["vs_best_fixed"] == pytest.approx((1.9 / 1.3) ** 0.5, abs=0.01)
    assert speckv["not_inferior"] == 2 and sweep["arms"]["static:1"]["not_inferior"] == 0


def test_where_the_next_block_is_worth_most():
    found = outcome(ONE, FOUR, count=4)
    arms = list(SECONDS)
    assert widest(found.blocks, arms, ONE) == pytest.approx(0, abs=1e-2)
    noisy = found.blocks.ran[SPECKV, FOUR]
    noisy[0] = blocks(SPECKV, 3.0, FOUR)[0]
    assert widest(found.blocks, arms, FOUR) > 0.1
    few = Blocks({key: ran[:2] for key, ran in found.blocks.ran.items()})
    assert widest(few, arms, ONE) == float("inf")


def test_where_nothing_adapts_the_fixed_settings_say_where_to_go_on():
    found = outcome(ONE, FOUR)
    fixed = [NONE, STATIC1, STATIC3]
    assert widest(found.blocks, fixed, FOUR) < 0.1 and widest(found.blocks, [STATIC3], FOUR) == 0
    found.blocks.ran[STATIC1, FOUR][0] = blocks(STATIC1, 3.0, FOUR)[0]
    assert widest(found.blocks, fixed, FOUR) > 0.1


def test_an_arm_that_is_out_does_not_say_where_to_go_on():
    """It has too few blocks for an interval, and will not get more."""
    found = outcome(ONE, FOUR)
    del found.blocks.ran[EMA, FOUR][1:]
    up = [arm for arm in SECONDS if arm != EMA]
    assert widest(found.blocks, [*SECONDS], FOUR) == float("inf")
    assert widest(found.blocks, up, FOUR) < 0.1


def test_checks_compare_what_is_the_same():
    again = replace(FRESH3, name="fresh:3#2")
    seconds = SECONDS | {FRESH3: 1.5, TWICE: 1.4, again: 1.5}
    checks = judged(outcome(seconds=seconds))["checks"]
    assert {(check["kind"], check["arm"], check["against"]) for check in checks} == {
        ("the same arm twice", "speckv#2", "speckv"),
        ("the same arm twice", "fresh:3#2", "fresh:3"),
        ("a server of its own", "fresh:3", "static:3"),
    }
    assert all(check["within_noise"] for check in checks)


def test_the_answer_in_a_sentence():
    line = answer(outcome(ONE, FOUR))
    assert line.startswith("eagle3, mixed: SpecKV was 1.08 [1.08, 1.08] of the best fixed depth")
    assert "(static:3), 1.12 [1.11, 1.12] of SGLang's rule, 1.46 [1.46, 1.46] of no draft" in line
    assert "at least 1.08 of every fixed setting" in line
    assert "as good as the best one (lower bound at least 0.95) at 2 of 2 loads" in line
    assert line.endswith("text identical in 8 of 8 answers.")


def test_the_text_of_a_moving_load_is_counted_once():
    found = moving()
    found.verdicts[SPECKV, Condition("sweep", 4)] = Verdict(18, 18, (), 1e-3)
    (line,) = answers(judged(found, concurrency=(1, 4)), {})
    assert line.endswith("text identical in 18 of 18 answers.")


def test_no_draft_is_the_better_of_both_schedulings():
    overlap = Arm("eagle3", "none:overlap", "eagle3-none-overlap")
    line = answer(outcome(seconds=SECONDS | {overlap: 1.8}))
    assert "1.31 [1.31, 1.31] of no draft (with the overlap scheduler)" in line


def test_what_the_answer_says_of_the_text():
    found = outcome()
    found.verdicts[SPECKV, ONE] = Verdict(10, 7, (1e-4, 0.5), 1e-3)
    line = answer(found)
    assert "in 7 of 10 answers, 1 differing only at ties of the target, 1 NOT the target's" in line
    assert "1 unchecked" in line
    assert found.lossy == [
        "eagle3 speckv (mixed, 1 request): 1 of 10 answers hold a token that the target would not "
        "choose (gap 0.5, a tie has up to 0.001)"
    ]
    found.verdicts.clear()
    assert answer(found).endswith("text NOT CHECKED.") and not found.is_checked


def test_what_was_not_timed_has_no_percentiles():
    assert percentiles([None]) is None
    assert percentiles([1.0, None, 2.0, 3.0]) == {"p50": 2.0, "p90": 2.8, "p99": 2.98}
