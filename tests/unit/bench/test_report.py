"""Cells: the figures, their JSON, the table."""

import io
import json

import pytest
from rich.console import Console

from sglang_speckv.bench.client import Completion
from sglang_speckv.bench.counters import Counters
from sglang_speckv.bench.lossless import Verdict
from sglang_speckv.bench.plan import NO_DRAFT, Arm, Block
from sglang_speckv.bench.plot import draw
from sglang_speckv.bench.report import cells_for, print_tables, rounded_shares
from sglang_speckv.bench.run import BlockResult

NONE = Arm(NO_DRAFT, "none", "none")
STATIC1 = Arm("eagle3", "static:1", "eagle3-speckv", "static:1")
STATIC3 = Arm("eagle3", "static:3", "eagle3-speckv", "static:3")
EMA = Arm("eagle3", "ema", "eagle3-ema")
SPECKV = Arm("eagle3", "speckv", "eagle3-speckv", "throughput")
KEYS = [
    *("draft", "arm", "concurrency", "tok_per_s", "accept_length", "accept_rate"),
    *("active", "lossless", "steps"),
]


def blocks(seconds: float, tier: int | None = None, verify_ct: int = 0) -> list[BlockResult]:
    recent = tuple((i * 0.1, tier or 0, 1) for i in range(30))
    counters = None if tier is None else Counters({str(tier): 30}, 30, 30 * tier, 30, recent=recent)
    completions = (Completion(tuple(range(64)), verify_ct, verify_ct),)
    return [
        BlockResult(Block(i, 1, ()), 64, seconds + 0.01 * i, completions, counters)
        for i in range(4)
    ]


@pytest.fixture
def cells():
    ran = {
        NONE: blocks(2.0),
        STATIC1: blocks(1.6, 1),
        STATIC3: blocks(1.5, 3),
        EMA: blocks(1.55, verify_ct=30),
        SPECKV: blocks(1.4, 3),
    }
    verdicts = {arm: Verdict(4) for arm in ran if arm != NONE}
    verdicts[SPECKV] = Verdict(4, (1e-5, 0.3))
    return cells_for("eagle3", 1, ran, verdicts)


def test_ratios_are_to_the_best_static_arm(cells):
    by_arm = {cell.arm: cell for cell in cells}
    assert by_arm["static:3"].ratio.value == 1
    assert by_arm["speckv"].ratio.value == pytest.approx(1.5 / 1.4, abs=0.01)
    assert by_arm["none"].ratio.value == pytest.approx(0.75, abs=0.01)


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
    detail = json.loads(json.dumps([cell.to_detail() for cell in cells]))[-1]
    assert (detail["divergences"], detail["ties"], detail["answers"]) == (2, 1, 4)
    assert len(detail["blocks"]) == 4


def test_without_a_static_arm_there_is_no_ratio():
    (cell,) = cells_for("eagle3", 1, {SPECKV: blocks(1.4, 3)}, {})
    assert cell.ratio is None and cell.to_detail()["ratio_to_best_static"] is None


@pytest.mark.parametrize("counts", [(1, 1, 1), (2, 3, 7, 11), (1,), (99999, 1)])
def test_rounded_shares_sum_to_one(counts):
    shares = rounded_shares({str(i): n / sum(counts) for i, n in enumerate(counts)})
    assert round(sum(shares.values()), 9) == 1
    assert all(share >= 0 for share in shares.values())


def test_table_shows_ties_and_losses(cells):
    out = io.StringIO()
    print_tables(cells, Console(file=out, width=130))
    text = out.getvalue()
    assert "draft eagle3, concurrency 1" in text
    assert "no: 1 of 4 (1 ties)" in text
    assert "3: 100%" in text


def test_picture(cells, tmp_path):
    draw(cells, tmp_path / "steps.png", "title")
    assert (tmp_path / "steps.png").read_bytes().startswith(b"\x89PNG")
