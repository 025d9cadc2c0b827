"""What is concluded from blocks: cells, sweeps, checks, the answer, and their JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import msgspec
import pytest

from sglang_speckv.ab.answer import answers, lossy, not_checked
from sglang_speckv.ab.arms import NO_DRAFT, Arm, Draft
from sglang_speckv.ab.comparison import Comparison
from sglang_speckv.ab.counters import Counters
from sglang_speckv.ab.journal import BlockResult, Results
from sglang_speckv.ab.load import Completion
from sglang_speckv.ab.lossless import Verdict
from sglang_speckv.ab.options import Goodput, Options
from sglang_speckv.ab.prompts import Prompt
from sglang_speckv.ab.report import accept_by_class
from sglang_speckv.ab.results import cell_json, describe, last_line
from sglang_speckv.ab.runner import Outcome
from sglang_speckv.ab.traffic import Block, Condition, Segment, Workload
from sglang_speckv.ab.verdict import Cell, judge, percentiles, widest

NONE = Arm(NO_DRAFT, "none", "none")
STATIC1 = Arm("eagle3", "static:1", "eagle3-speckv", "static:1")
STATIC3 = Arm("eagle3", "static:3", "eagle3-speckv", "static:3")
FRESH3 = Arm("eagle3", "fresh:3", "eagle3-fresh3")
EMA = Arm("eagle3", "ema", "eagle3-ema")
SPECKV = Arm("eagle3", "speckv", "eagle3-speckv", "throughput")
TWICE = Arm("eagle3", "speckv#2", "eagle3-speckv", "throughput")
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
    counters = (
        None if steps is None else Counters({str(steps): 30}, 30, 30 * steps, 30, recent=recent)
    )
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
                found.results.add(arm, result)
            if arm != NONE:
                verdict = Verdict(4, 4, (), 1e-3)
                found.verdicts[arm, condition] = verdict
    return found


def comparison(found: Outcome, **asked: object) -> Comparison:
    arms = list(dict.fromkeys(arm for arm, _ in found.results.blocks))
    conditions = found.results.conditions()
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
        arms=arms,
        groups=[],
        workload=Workload([], concurrency),
        tokenize=lambda prompt: [1],
        server_flags=[],
        dtype="float32",
    )


def cells_of(found: Outcome, at: Condition = ONE, **asked: object) -> dict[str, Cell]:
    cells = judge(comparison(found, **asked), found).cells
    return {cell.arm: cell for cell in cells if cell.condition == at}


def rate(arm: Arm) -> float:
    """tok/s after the first token."""
    return 63 / (SECONDS[arm] - 0.1)


def test_ratios_are_raw_and_to_every_fixed_setting():
    cells = cells_of(outcome())
    speckv = cells["speckv"].standing
    assert set(speckv.fixed) == {"none", "static:1", "static:3"}
    assert set(speckv.over) == {"none", "static:1", "static:3", "ema"}
    assert cells["none"].tok_per_s == pytest.approx(rate(NONE), rel=0.02)
    for name, cell in cells.items():
        over = speckv.over.get(name)
        assert over is None or over.value == pytest.approx(
            cells["speckv"].tok_per_s / cell.tok_per_s
        )
    assert speckv.best_fixed == "static:3" and speckv.vs_best_fixed == speckv.over["static:3"]
    assert cells["static:3"].standing.vs_best_fixed is None, "it is the best one"


def test_the_lower_bound_is_the_least_of_all_fixed_settings():
    speckv = cells_of(outcome())["speckv"].standing
    lows = {name: speckv.over[name].low for name in ("none", "static:1", "static:3")}
    assert speckv.lower_bound == min(lows.values()) == lows["static:3"]
    assert cells_of(outcome(count=2))["speckv"].standing.lower_bound is None


def test_a_stock_server_is_a_fixed_setting_and_a_second_time_is_not():
    seconds = SECONDS | {FRESH3: 1.3, TWICE: 1.4, replace(STATIC1, name="static:1#2"): 1.6}
    standing = cells_of(outcome(seconds=seconds))["speckv"].standing
    assert set(standing.fixed) == {"none", "static:1", "static:3", "fresh:3"}
    assert standing.best_fixed == "fresh:3"


def test_json_of_a_cell():
    cells = {arm: cell_json(cell) for arm, cell in cells_of(outcome()).items()}
    none, static1, ema, speckv = (cells[name] for name in ("none", "static:1", "ema", "speckv"))
    assert none["accept_length"] is None and none["steps"] is None and none["active"] is None
    assert (static1["accept_rate"], static1["accept_length"]) == (1.0, 2.0)
    assert static1["steps"] == {"1": 1.0} and static1["active"] is True
    assert (ema["accept_rate"], ema["accept_length"], ema["lossless"]) == (None, 2.0, True)
    assert speckv["interval"][0] <= speckv["vs_best_fixed"] <= speckv["interval"][1]
    assert speckv["lower_bound"] <= speckv["vs_best_fixed"] and speckv["blocks"] == 4


def test_all_of_a_run_is_json():
    found = outcome(ONE, FOUR)
    wanted = comparison(found)
    results = describe(wanted, found, judge(wanted, found), 60.0)
    plain = json.loads(msgspec.json.encode(results))
    cell = plain["cells"][-1]
    assert cell["ttft_s"]["p50"] == 0.1 and cell["tpot_s"]["p50"] > 0 and cell["e2e_s"]["p99"] > 1
    assert [b["place"] for b in cell["block_results"]] == [0, 1, 2, 3]
    assert all(b["has_window"] for b in cell["block_results"])
    line = json.loads(last_line(results, {}))
    assert {"answers", "none_scheduling", "cells", "sweep", "checks", "seconds"} <= line.keys()
    assert {"blocks", "lower_bound"} <= line["cells"][0].keys()
    assert "block_results" not in line["cells"][0]


def test_without_a_fixed_arm_there_is_no_ratio():
    cell = cells_of(outcome(seconds={SPECKV: 1.4}))["speckv"]
    assert cell.standing.vs_best_fixed is None and cell.standing.lower_bound is None


def test_an_arm_whose_server_failed_has_figures_and_no_ratio():
    found = outcome()
    found.failures["eagle3-ema"] = "gone"
    found.results.blocks[EMA, ONE] = found.results.of(EMA, ONE)[:1]
    cells = cells_of(found)
    assert cells["ema"].tok_per_s > 0 and not cells["ema"].standing.over
    assert len(cells["speckv"].blocks) == 4 and "ema" not in cells["speckv"].standing.over


def test_a_block_that_was_broken_off_counts_for_nobody():
    found = outcome()
    found.results.blocks[SPECKV, ONE].pop()
    assert {len(cell.blocks) for cell in cells_of(found).values()} == {3}


def test_open_loops_count_the_requests_own_time_and_stand_in_no_sweep():
    at = Condition("mixed", None, 2.0)
    found = outcome(ONE, at)
    judged = judge(comparison(found), found)
    (speckv,) = (c for c in judged.cells if (c.arm, c.condition) == ("speckv", at))
    assert speckv.tok_per_s == pytest.approx(64 / 1.4, rel=0.03)
    assert [sweep.loads for sweep in judged.sweeps] == [1]


def test_goodput_is_requests_per_second_that_keep_the_objective():
    found = outcome(FOUR)
    seconds = sum(result.seconds for result in found.results.of(SPECKV, FOUR))
    for objective, kept in (
        (Goodput(ttft=0.2, e2e=2.0), 16),
        (Goodput(e2e=1.405), 4),
        (Goodput(ttft=0.05), 0),
        (Goodput(tpot=0.001), 0),
    ):
        cell = cells_of(found, FOUR, goodput=objective)["speckv"]
        assert cell.goodput == pytest.approx(kept / seconds)
    assert cells_of(found, FOUR)["speckv"].goodput is None


def test_a_moving_load_has_a_row_for_each_of_its_loads():
    """One request takes 1 s; four at once take 2 s each."""
    at = Condition("sweep", 4)
    found = Outcome()
    for arm, speed in ((NONE, 1.0), (SPECKV, 2.0)):
        for i in range(3):
            segments = tuple(
                Segment(n, tuple(Prompt(f"p{i}-{k}-{j}", "qa", "x") for j in range(n)))
                for k, n in enumerate((1, 4, 1))
            )
            done = [completion(s / speed) for s in (1.1, *(2.1,) * 4, 1.1)]
            recent = ((0.0, 5, 1), (1.0, 5, 1), (2.0, 1, 4), (4.0, 1, 3), (5.0, 5, 1))
            counters = Counters({"1": 2, "5": 3}, 9, 9, 9, recent=recent) if arm == SPECKV else None
            found.results.add(arm, BlockResult(Block(i, at, segments), 9.0, tuple(done), counters))
    wanted = comparison(found, concurrency=(1, 4))
    judged = judge(wanted, found)
    one, four = (
        {c.arm: c for c in judged.cells if c.condition == Condition("sweep", n)} for n in (1, 4)
    )
    assert one["none"].tok_per_s == pytest.approx(63 / 1.0)
    assert four["none"].tok_per_s == pytest.approx(4 * 63 / 2.0)
    assert len(one["none"].completions) == 6 and len(four["none"].completions) == 12
    assert one["speckv"].steps == {"5": 1.0} and four["speckv"].steps == {"1": 1.0}
    assert four["speckv"].step_time == {"1": 1.0}
    assert judged.sweeps[0].loads == 2


def test_the_whole_sweep_and_each_loads_own_best():
    """static:3 is best at one request, none at four and over both."""
    found = outcome(ONE)
    at_four = SECONDS | {NONE: 1.0, SPECKV: 1.0}
    for arm, seconds in at_four.items():
        for result in blocks(arm, seconds, FOUR):
            found.results.add(arm, result)
    (sweep,) = judge(comparison(found), found).sweeps
    speckv = sweep.standings["speckv"]
    assert sweep.best_fixed == speckv.best_fixed == "none"
    assert speckv.vs_best_fixed.value == pytest.approx((1.9 / 1.3) ** 0.5, abs=0.01)
    assert sweep.own_best["speckv"].value == pytest.approx((1.4 / 1.3) ** 0.5, abs=0.01)
    assert sweep.own_best["static:3"].value == pytest.approx((0.9 / 1.4) ** 0.5, abs=0.01)
    assert sweep.not_inferior["speckv"] == 2 and sweep.not_inferior["static:1"] == 0


def test_where_the_next_block_is_worth_most():
    found = outcome(ONE, FOUR, count=4)
    wanted = comparison(found)
    assert widest(wanted, found.results, ONE) == pytest.approx(0, abs=1e-2)
    noisy = found.results.blocks[SPECKV, FOUR]
    noisy[0] = blocks(SPECKV, 3.0, FOUR)[0]
    assert widest(wanted, found.results, FOUR) > 0.1
    few = Results({key: found[:2] for key, found in found.results.blocks.items()})
    assert widest(wanted, few, ONE) == float("inf")


def test_checks_compare_what_is_the_same():
    found = outcome(seconds=SECONDS | {FRESH3: 1.5, TWICE: 1.4})
    checks = judge(comparison(found), found).checks
    assert {(check.kind, check.arm, check.against) for check in checks} == {
        ("the same arm twice", "speckv#2", "speckv"),
        ("a server of its own", "fresh:3", "static:3"),
    }
    assert all(check.within_noise for check in checks)


def test_the_answer_in_a_sentence():
    found = outcome(ONE, FOUR)
    (line,) = answers(found, judge(comparison(found), found))
    assert line.startswith("eagle3, mixed: SpecKV was 1.08 [1.08, 1.08] of the best fixed depth")
    assert "(static:3), 1.12 [1.12, 1.12] of SGLang's rule, 1.46 [1.46, 1.46] of no draft" in line
    assert "at least 1.08 of every fixed setting" in line
    assert "0.95 of the best one in 2 of 2 loads" in line
    assert line.endswith("text identical in 8 of 8 answers.")


def test_no_draft_is_the_better_of_both_schedulings():
    overlap = Arm(NO_DRAFT, "none:overlap", "none-overlap")
    found = outcome(seconds=SECONDS | {overlap: 1.8})
    (line,) = answers(found, judge(comparison(found), found))
    assert "1.31 [1.31, 1.31] of no draft (with the overlap scheduler)" in line


def test_what_the_answer_says_of_the_text():
    found = outcome()
    found.verdicts[SPECKV, ONE] = Verdict(10, 7, (1e-4, 0.5), 1e-3)
    (line,) = answers(found, judge(comparison(found), found))
    assert "in 7 of 10 answers, 1 differing only at ties of the target, 1 NOT the target's" in line
    assert "1 unchecked" in line
    assert lossy(found) == [
        "eagle3 speckv (mixed, 1 request): 1 of 10 answers hold a token that the target would not "
        "choose (gap 0.5, a tie has up to 0.001)"
    ]
    found.verdicts.clear()
    (line,) = answers(found, judge(comparison(found), found))
    assert line.endswith("text NOT CHECKED.") and not_checked(found)


def test_what_was_not_timed_has_no_percentiles():
    assert percentiles([]) is None
    assert percentiles([1.0, 2.0, 3.0]) == {"p50": 2.0, "p90": 2.8, "p99": 2.98}


def test_accept_length_by_class():
    cells = list(cells_of(outcome()).values())
    found = accept_by_class(cells)
    assert found["ema"] == {"code": 2.0} and "none" not in found
