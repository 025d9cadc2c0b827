"""Cells and what is concluded from them: figures, JSON, tables."""

import io
import json

import pytest
from rich.console import Console

from sglang_speckv.bench.arms import NO_DRAFT, Arm
from sglang_speckv.bench.cells import (
    capped,
    cells_for,
    pair_up,
    percentiles,
    rounded_shares,
    sample_of,
)
from sglang_speckv.bench.counters import Counters
from sglang_speckv.bench.describe import cell_detail
from sglang_speckv.bench.load import Completion
from sglang_speckv.bench.lossless import Verdict
from sglang_speckv.bench.page import accept_by_class
from sglang_speckv.bench.prompts import Prompt
from sglang_speckv.bench.report import headroom_line, print_tables
from sglang_speckv.bench.results import BlockResult, Results, tok_per_s
from sglang_speckv.bench.stats import Ratio
from sglang_speckv.bench.sweep import sweep_for
from sglang_speckv.bench.traffic import Block, Condition, Segment

NONE = Arm(NO_DRAFT, "none", "none")
STATIC1 = Arm("eagle3", "static:1", "eagle3-speckv", "static:1")
STATIC3 = Arm("eagle3", "static:3", "eagle3-speckv", "static:3")
EMA = Arm("eagle3", "ema", "eagle3-ema")
SPECKV = Arm("eagle3", "speckv", "eagle3-speckv", "throughput")
ONE, FOUR = Condition("mixed", 1), Condition("mixed", 4)
KEYS = [
    *("draft", "arm", "concurrency", "tok_per_s", "accept_length", "accept_rate"),
    *("active", "lossless", "steps"),
]


def blocks(
    seconds: float, tier: int | None = None, verify_ct: int = 0, at: Condition = ONE, count: int = 4
) -> list[BlockResult]:
    recent = tuple((i * 0.1, tier or 0, 1) for i in range(30))
    counters = None if tier is None else Counters({str(tier): 30}, 30, 30 * tier, 30, recent=recent)
    done = Completion(tuple(range(64)), verify_ct, verify_ct, 64, seconds, 0.1)
    return [
        BlockResult(
            Block(i, at, (Segment(1, (Prompt(f"p{i % 2}", "code", "x"),)),)),
            seconds + 0.01 * i,
            (done,),
            counters,
        )
        for i in range(count)
    ]


def ran(at: Condition = ONE) -> dict[Arm, list[BlockResult]]:
    return {
        NONE: blocks(2.0, at=at),
        STATIC1: blocks(1.6, 1, at=at),
        STATIC3: blocks(1.5, 3, at=at),
        EMA: blocks(1.55, verify_ct=30, at=at),
        SPECKV: blocks(1.4, 3, at=at),
    }


@pytest.fixture
def cells():
    verdicts = {arm: Verdict(4) for arm in ran() if arm != NONE}
    verdicts[SPECKV] = Verdict(4, (1e-5, 0.3))
    return cells_for("eagle3", ran(), verdicts)


def test_rate_is_all_tokens_over_all_time():
    assert tok_per_s(blocks(1.0, count=1) + blocks(3.0, count=1)) == pytest.approx(2 * 64 / 4)
    assert tok_per_s([]) == 0


def test_ratios_are_to_the_best_static_arm_and_the_baseline(cells):
    by_arm = {cell.arm: cell for cell in cells}
    assert by_arm["static:3"].ratio.value == 1
    assert by_arm["speckv"].ratio.value == pytest.approx(1.5 / 1.4, abs=0.01)
    assert by_arm["none"].ratio.value == pytest.approx(0.75, abs=0.01)
    assert by_arm["static:3"].to_baseline.value == pytest.approx(2 / 1.5, abs=0.01)


def test_json_has_exactly_the_promised_keys_and_values(cells):
    none, static1, _, ema, speckv = (cell.to_json() for cell in cells)
    assert all(list(cell) == KEYS for cell in (none, static1, ema, speckv))
    assert none["draft"] == "eagle3" and none["accept_length"] is None and none["steps"] is None
    assert none["active"] is None and none["lossless"] is None
    assert static1["active"] is True and static1["steps"] == {"1": 1.0}
    assert (static1["accept_rate"], static1["accept_length"]) == (1.0, 2.0)
    assert (ema["accept_rate"], ema["accept_length"], ema["steps"]) == (None, 2.0, None)
    assert ema["active"] is None and ema["lossless"] is True
    assert speckv["lossless"] is False and speckv["accept_rate"] == 0.3333


def test_details_are_json_too(cells):
    detail = json.loads(json.dumps([cell_detail(cell) for cell in cells]))[-1]
    assert (detail["divergences"], detail["ties"], detail["answers"]) == (2, 1, 4)
    assert len(detail["blocks"]) == 4 and detail["workload"] == "mixed"
    assert detail["latency_s"]["p50"] == 1.4 and detail["first_token_s"]["p99"] == 0.1
    assert detail["per_token_s"]["p50"] == pytest.approx(1.3 / 63, abs=1e-4)
    assert detail["step_time"] == {"3": 1.0}


def test_without_a_static_arm_there_is_no_ratio():
    (cell,) = cells_for("eagle3", {SPECKV: blocks(1.4, 3)}, {})
    assert cell.ratio is None and cell_detail(cell)["ratio_to_best_static"] is None


def test_an_arm_that_failed_or_was_spared():
    results = Results()
    for arm, found in (ran() | {STATIC1: blocks(3.0, 1, count=2)}).items():
        for result in found:
            results.add(arm, result)
    arms = [NONE, STATIC1, STATIC3, EMA, SPECKV]
    paired, alone = pair_up(results, arms, ONE, failed=["eagle3-ema"])
    assert set(alone) == {EMA}
    assert {arm.name: len(found) for arm, found in paired.items()} == {
        "none": 4,
        "static:1": 2,
        "static:3": 4,
        "speckv": 4,
    }
    shown = {cell.arm: cell for cell in cells_for("eagle3", paired, {}, alone=alone)}
    assert shown["ema"].ratio is None and shown["ema"].tok_per_s > 0
    assert shown["static:1"].ratio.value == pytest.approx(0.5, abs=0.01)
    assert shown["static:1"].ratio.interval is None  # two blocks
    assert shown["speckv"].ratio.interval is not None


def test_a_block_that_was_broken_off_counts_for_nobody():
    results = Results()
    for arm, found in ran().items():
        for result in found[: 3 if arm == SPECKV else 4]:
            results.add(arm, result)
    paired, _ = pair_up(results, list(ran()), ONE)
    assert {len(found) for found in paired.values()} == {3}


def test_open_loops_count_the_requests_own_time():
    at = Condition("mixed", None, 2.0)
    (cell,) = cells_for("eagle3", {SPECKV: blocks(1.4, 3, at=at)}, {})
    assert cell.tok_per_s == pytest.approx(64 / 1.4)  # latency, not the block's wall time


@pytest.mark.parametrize(
    ("latencies", "shares"), [((1.0, 3.0), [2.0, 6.0]), ((0.0, 0.0), [4.0, 4.0])]
)
def test_a_prompts_time_is_its_requests_share_of_the_blocks(
    latencies: tuple[float, float], shares: list[float]
):
    """Two blocks of the same two prompts; requests that took no time share alike."""
    prompts = tuple(Prompt(name, "code", "x") for name in "ab")
    done = tuple(
        Completion((), tokens=n, latency_s=s) for n, s in zip((10, 30), latencies, strict=True)
    )
    at = Condition("mixed", 2)
    results = [BlockResult(Block(i, at, (Segment(2, prompts),)), 4.0, done) for i in range(2)]
    found = sample_of({NONE: results})
    assert found.prompts.ids == ("a", "b")
    assert found.prompts.tokens.tolist() == [[20.0, 60.0]]
    assert found.prompts.seconds.tolist() == [shares]
    assert found.blocks.tokens.tolist() == [[40.0, 40.0]]
    assert found.blocks.seconds.tolist() == [[4.0, 4.0]]


def test_rounds_and_time_per_depth_are_summed_over_blocks():
    (cell,) = cells_for(
        "eagle3", {SPECKV: blocks(1.4, 1, count=1) + blocks(1.4, 3, count=3)[1:]}, {}
    )
    for shares in (cell.steps, cell.step_time):
        assert shares == pytest.approx({"1": 1 / 3, "3": 2 / 3})


def test_what_was_not_timed_has_no_percentiles():
    assert percentiles([]) is None
    assert percentiles([1.0, 2.0, 3.0]) == {"p50": 2.0, "p90": 2.8, "p99": 2.98}


def test_one_of_several_is_at_most_their_best():
    assert capped(Ratio(1.1, 1.05, 1.2), True) == Ratio(1.0, 1.0, 1.0)
    assert capped(Ratio(0.9, 0.8, 1.2), True) == Ratio(0.9, 0.8, 1.0)
    assert capped(Ratio(1.1, 1.05, 1.2), False) == Ratio(1.1, 1.05, 1.2)


def test_one_setting_for_the_whole_sweep():
    four = ran(FOUR) | {NONE: blocks(1.0, at=FOUR), SPECKV: blocks(1.0, 0, at=FOUR)}
    cells = [*cells_for("eagle3", ran(), {}), *cells_for("eagle3", four, {})]
    sweep = sweep_for("eagle3", "mixed", [ran(), four], cells, "none")
    shown = sweep.to_json()
    # static:3 at one, none at four; none is best as a single setting: sqrt(2 x 1) < 1.5
    assert sweep.best_single == "none"
    assert shown["headroom"] == pytest.approx((2.0 / 1.5) ** 0.5, abs=0.01)
    assert shown["speckv"]["vs_best_single_static"] == pytest.approx((2 / 1.4) ** 0.5, abs=0.01)
    assert shown["speckv"]["captured"] > 1
    assert shown["speckv"]["vs_ema"] == pytest.approx((1.55 / 1.4 * 1.55) ** 0.5, abs=0.01)
    assert shown["static:3"]["worst_cell_vs_best_static"] == pytest.approx(1 / 1.5, abs=0.01)
    lost = {arm: shown[arm]["cells_wholly_below_0.98"] for arm in ("none", "static:3", "speckv")}
    assert lost == {"none": 1, "static:3": 1, "speckv": 0}
    assert "headroom x1.1" in headroom_line(sweep)


@pytest.mark.parametrize("counts", [(1, 1, 1), (2, 3, 7, 11), (1,), (99999, 1)])
def test_rounded_shares_sum_to_one(counts):
    shares = rounded_shares({str(i): n / sum(counts) for i, n in enumerate(counts)})
    assert round(sum(shares.values()), 9) == 1
    assert all(share >= 0 for share in shares.values())


def test_table_shows_ties_and_losses(cells):
    out = io.StringIO()
    print_tables(cells, Console(file=out, width=150))
    text = out.getvalue()
    assert "draft eagle3: mixed, concurrency 1" in text
    assert "no: 1 of 4 (1 ties)" in text
    assert "3: 100%" in text


def test_accept_length_by_class(cells):
    assert accept_by_class(cells) == {"ema": {"code": 2.0}}
