"""`speckv replay` of a trace of draft trees."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from sglang_speckv.cli import app
from sglang_speckv.config import ConfigError, Shape
from sglang_speckv.offline.records import Record
from sglang_speckv.offline.round_cost import AssumedCost
from sglang_speckv.replay.trees import read_trees, replay_trees, tree_lines
from tests.unit.offline.synthetic import HEADER, write_trace
from tests.unit.policy.tree_simulate import TOPK, tree, verified

NAMES = ("0", "1x2", "2x4", "3x8", "3x16", "5x32")
SERVED = Shape(5, 32)
TREES = msgspec.structs.replace(HEADER, candidate_steps=(), candidate_shapes=NAMES, topk=TOPK)
REQUESTS, ROUNDS = 12, 25


def records(shape: Shape = SERVED) -> Iterator[Record]:
    rng = np.random.default_rng(0)
    for number in range(REQUESTS * ROUNDS):
        made = tree(rng, 0.5, shape.num_steps)
        nodes = verified(made, shape)
        yield Record(
            round=number,
            request=f"r{number % REQUESTS}",
            batch_size=1,
            context_len=10,
            num_steps=shape.num_steps,
            num_correct_drafts=int(nodes[:, 2].sum()),
            first_prob=max(node.joint for node in made[:TOPK]),
            num_draft_tokens=shape.num_draft_tokens,
            nodes=tuple((p, int(level), int(right)) for p, level, right in nodes.tolist()),
        )


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace(tmp_path_factory.mktemp("trees") / "a.jsonl.gz", records(), TREES)


def test_shapes_that_the_recorded_one_holds_are_compared(trace: Path) -> None:
    trees = read_trees([trace])
    assert trees.served == SERVED and len(trees.requests) == REQUESTS
    assert [str(shape) for shape in trees.shapes] == ["0", "1x2", "2x4", "3x8", "3x16", "5x32"]
    assert {len(firsts) for firsts, _ in trees.requests} == {ROUNDS}


COSTS = {"tokens are cheap": AssumedCost(0.02, 0.001), "tokens are dear": AssumedCost(0.05, 0.15)}


@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)
def test_the_policy_is_near_the_best_shape(trace: Path, cost: AssumedCost) -> None:
    result = replay_trees([trace], cost, [1, 4], seeds=2, passes=2)
    for cell in result["cells"]:
        arms = {arm["arm"]: arm for arm in cell["arms"]}
        rates = [arms[f"static:{name}"]["rate"] for name in NAMES]
        assert arms[cell["best_fixed"]]["rate"] == max(rates)
        assert arms["static:0"]["accept_length"] == 1.0
        assert arms["throughput"]["vs_best_fixed"] > 0.95
        assert arms["throughput"]["interval"][0] < arms["throughput"]["vs_best_fixed"]
        assert sum(arms["throughput"]["shapes"].values()) == pytest.approx(1.0, abs=1e-3)
    assert json.dumps(result)
    lines = tree_lines(result)
    assert any("static:3x8" in line for line in lines) and "as recorded" in lines[-1]


def test_the_command(trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "trees.json"
    asked = ["replay", str(trace), "--draft-cost", "0.1", "--verify-width", "0.02", "--seeds", "1"]
    said = CliRunner().invoke(app, [*asked, "--passes", "1", "--out", str(out)])
    assert said.exit_code == 0, said.output
    told = json.loads(said.output.splitlines()[-1])
    assert told["candidate_shapes"] == list(NAMES)
    assert json.loads(out.read_text())["cells"] == told["cells"]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no cost": ({}, "give --draft-cost"),
    "a policy": ({"--draft-cost": "0.1", "--policy": "ema"}, "only --requests"),
    "other traffic": ({"--draft-cost": "0.1", "--traffic": "phases"}, "only --requests"),
    "a cost that is none": ({"--draft-cost": "-1"}, "not shares of a target step"),
    "too many": ({"--draft-cost": "0.1", "--requests": "13"}, "12 requests in all"),
}


@pytest.mark.parametrize(("options", "problem"), BAD.values(), ids=BAD)
def test_what_cannot_be_replayed(trace: Path, options: dict[str, str], problem: str) -> None:
    flat = [part for pair in options.items() for part in pair]
    said = CliRunner().invoke(app, ["replay", str(trace), *flat])
    assert said.exit_code != 0
    assert problem in (str(said.exception) + said.output)


def test_a_trace_that_says_nothing_of_nodes(tmp_path: Path) -> None:
    silent = [msgspec.structs.replace(record, nodes=()) for record in records()]
    path = write_trace(tmp_path / "a.jsonl.gz", silent, TREES)
    with pytest.raises(ConfigError, match="no round of a draft tree whose nodes are known"):
        read_trees([path])


def test_a_trace_that_is_mostly_of_smaller_shapes(tmp_path: Path) -> None:
    mixed = [*records(Shape(3, 8)), *list(records())[:10]]
    path = write_trace(tmp_path / "a.jsonl.gz", mixed, TREES)
    with pytest.raises(ConfigError, match="only 10 of 310 rounds have the largest shape 5x32"):
        read_trees([path])


def test_traces_of_two_pairs(trace: Path, tmp_path: Path) -> None:
    other = msgspec.structs.replace(TREES, topk=8)
    path = write_trace(tmp_path / "a.jsonl.gz", records(), other)
    with pytest.raises(ConfigError, match="one topk at a time"):
        read_trees([trace, path])


def test_nodes_that_are_not_as_many_as_the_shape_says(tmp_path: Path) -> None:
    broken = [msgspec.structs.replace(record, nodes=record.nodes[:3]) for record in records()]
    path = write_trace(tmp_path / "a.jsonl.gz", broken, TREES)
    with pytest.raises(ConfigError, match="not as many nodes as its shape 5x32"):
        read_trees([path])


def test_other_readers_refuse_trees(trace: Path) -> None:
    from sglang_speckv.offline.columns import read_columns

    with pytest.raises(ConfigError, match="trace of draft trees"):
        read_columns([trace])
