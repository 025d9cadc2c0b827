"""Draft trees whose shape moves from round to round, on the real engine."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from sglang_speckv.offline.records import read_trace
from tests.engine.conftest import ALL, PAIRS, PROMPTS, Serving, flags, serving
from tests.engine.reference import AT_A_TIME, Reference, follows_target, sampled
from tests.engine.test_exact import alike, alone
from tests.exact.features import FEATURES, end_of_the_context, unlike

__all__ = ["alone"]
pytestmark = pytest.mark.engine

SHAPES = ("0", "1x2", "3x8", "3x16", "5x16")
PLACES = [3, 0, 4, 1, 2]
"""Of all of them, in an order that changes much."""
TREE = ("--speculative-num-steps", "3", "--speculative-eagle-topk", "4")
LAUNCH = (*TREE, "--speculative-num-draft-tokens", "16")
DRAFTS = tuple(PAIRS) if ALL else ("eagle3",)


@pytest.fixture(scope="module", params=DRAFTS)
def tree(
    request: pytest.FixtureRequest, models: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp(request.param)
    launch = [*flags(models, *PAIRS[request.param]), *LAUNCH, "--max-running-requests", AT_A_TIME]
    asked = ["--speckv", "--speckv-candidate-shapes", ",".join(SHAPES), "--speckv-profile", "2"]
    asked += ["--speckv-trace", str(folder / "trace"), "--enable-metrics"]
    with serving(folder, *launch, *asked) as running:
        running.pair, running.trace = request.param, folder / "trace"
        yield running


def test_every_shape_gives_the_targets_text(tree: Serving, plain_answers: dict[str, Any]) -> None:
    for shape in SHAPES:
        tree.select(f"static:{shape}")
        before = tree.speckv()["rounds"][shape]
        assert tree.tokens(PROMPTS) == plain_answers["batch"], shape
        assert tree.speckv()["rounds"][shape] > before
    shown = tree.speckv()
    assert not shown["failures"] and not shown["fallbacks"]
    assert shown["candidate_shapes"] == list(SHAPES)
    assert shown["stops"] == shown["widths"] == "off: trees are drafted and verified whole"


def test_greedy_text_is_the_targets_while_the_shape_moves(
    tree: Serving, plain_answers: dict[str, Any]
) -> None:
    before = tree.speckv()["rounds"]
    with tree.shuffled_depths(PLACES):
        for _ in range(6):
            assert tree.tokens(PROMPTS) == plain_answers["batch"]
    after = tree.speckv()["rounds"]
    assert sum(after[shape] > before[shape] for shape in SHAPES) >= 4


@pytest.mark.parametrize("top_p", [1.0, 0.8] if ALL else [0.8])
def test_sampled_text_follows_the_target_while_the_shape_moves(
    tree: Serving, models: dict[str, str], top_p: float
) -> None:
    with tree.shuffled_depths(PLACES):
        answers = sampled(tree, top_p)
    assert follows_target(answers, Reference(models["target"]), top_p)


def test_a_request_that_takes_no_drafts_beside_others(
    tree: Serving, plain_answers: dict[str, Any]
) -> None:
    tree.select("static:5x16")
    told = unlike(tree, [{}, {"presence_penalty": 1e-6}, {}, {"frequency_penalty": 1e-6}])
    assert [answer["output_ids"] for answer in told] == plain_answers["batch"]
    answers = [answer["meta_info"] for answer in told]
    proposed, rounds = (
        [answer[f"spec_{name}"] for answer in answers]
        for name in ("num_proposed_drafts", "verify_ct")
    )
    assert proposed == [15 * rounds[0], 0, 15 * rounds[2], 0]


def test_an_answer_may_use_the_whole_context(tree: Serving) -> None:
    """Where what is set aside for a round lies behind its end."""
    tree.select("static:0")
    wanted = end_of_the_context(tree)
    tree.select("static:5x16")
    assert end_of_the_context(tree) == wanted


@pytest.mark.skipif(not ALL, reason="takes long: make exact")
@pytest.mark.parametrize("name", FEATURES)
def test_feature(tree: Serving, alone: dict[str, Any], name: str) -> None:
    with tree.shuffled_depths(PLACES):
        assert alike(FEATURES[name](tree), alone[name])
    assert not tree.speckv()["failures"]


def test_the_policy_chooses_shapes_and_counts_what_was_verified(tree: Serving) -> None:
    tree.select("throughput")
    before = tree.speckv()
    answers = [answer["meta_info"] for answer in tree.generate(PROMPTS, max_new_tokens=64)]
    after = tree.speckv()
    assert after["policy_state"]["ignored_rounds"] == 0 and not after["failures"]
    assert after["decision"]["shape"] in SHAPES
    for name in ("proposed_drafts", "correct_drafts"):
        told = sum(answer[f"spec_num_{name}"] for answer in answers)
        assert after[name] - before[name] == told


def test_the_trace_tells_every_node(tree: Serving) -> None:
    tree.select("static:3x16")
    tree.tokens(PROMPTS)
    time.sleep(1.5)  # until it is flushed
    header, records = read_trace(sorted(tree.trace.glob("*.gz"))[-1])
    assert header.candidate_shapes == SHAPES and header.topk == 4
    drafted = [record for record in records if record.num_steps > 0]
    assert {(r.num_steps, r.num_draft_tokens) for r in drafted} >= {(3, 16), (5, 16)}
    for record in drafted:
        probs, levels, accepted = zip(*record.nodes, strict=True)
        assert len(probs) == (record.num_draft_tokens or 0) - 1
        assert sum(accepted) == record.num_correct_drafts
        assert set(levels) <= set(range(1, record.num_steps + 1))
        assert sorted(level for level, right in zip(levels, accepted, strict=True) if right) == (
            list(range(1, record.num_correct_drafts + 1))
        )
        assert min(probs) >= 0.0 and max(probs) <= 1.0


def test_metrics_name_shapes(tree: Serving) -> None:
    page = requests.get(tree.url + "/metrics", timeout=60).text
    assert re.search(r'speckv:rounds_total\{.*num_steps="3x16".*\} [1-9]', page)
