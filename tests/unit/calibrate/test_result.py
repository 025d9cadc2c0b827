"""Survival, tokens per round and tok/s, counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang_speckv.calibrate import result
from sglang_speckv.config import ConfigError
from sglang_speckv.offline.columns import Columns, read_columns
from sglang_speckv.offline.records import Record
from sglang_speckv.policy.prior import OFF, CostPrior
from tests.unit.offline.synthetic import write_trace

DEEPEST = 3


def record(place: int, correct: int, prompt: str = "code:a", **other: Any) -> Record:
    told = {"round": place, "batch_size": 1, "num_steps": DEEPEST, "context_len": place} | other
    return Record(request=f"{prompt}:{place}", num_correct_drafts=correct, **told)


def counted(path: Path, *records: Record) -> Columns:
    return result.counted(read_columns([write_trace(path / "1.jsonl.gz", records)]))


def test_survival_is_counted_by_position_and_class(tmp_path: Path):
    code = [record(place, correct) for place, correct in enumerate((3, 3, 1, 0))]
    talk = [record(9, 2, "talk:b")]
    every, *classes = result.survival_by_class(counted(tmp_path, *code, *talk), DEEPEST)
    assert every == {"class": "all", "rounds": 5, "survival": [0.8, 0.6, 0.4]}
    assert classes == [
        {"class": "code", "rounds": 4, "survival": [0.75, 0.5, 0.5]},
        {"class": "talk", "rounds": 1, "survival": [1.0, 1.0, 0.0]},
    ]


def test_one_class_is_all_there_is(tmp_path: Path):
    assert len(result.survival_by_class(counted(tmp_path, record(0, 1)), DEEPEST)) == 1


@pytest.mark.parametrize(
    "left_out",
    [
        record(0, 3),  # the same place of the same text, answered again
        record(5, 0, stopped=True),
        record(5, 1, num_verified=1),
        Record(
            round=5,
            request="health",
            batch_size=1,
            num_steps=3,
            num_correct_drafts=0,
            context_len=5,
        ),
    ],
    ids=["again", "stopped", "cut", "no prompt of ours"],
)
def test_rounds_that_tell_nothing_new_do_not_count(tmp_path: Path, left_out: Record):
    rows = counted(tmp_path, record(0, 3), left_out)
    assert result.survival_by_class(rows, DEEPEST)[0]["rounds"] == 1
    with pytest.raises(ConfigError, match="no round of depth 5"):
        result.survival_by_class(rows, 5)


def test_the_formula_and_what_was_measured_stand_side_by_side(tmp_path: Path):
    shallow = [record(place, correct, num_steps=1) for place, correct in enumerate((1, 0, 1, 1))]
    rows = counted(tmp_path, record(0, 3), record(1, 1), *shallow)
    survival = result.survival_by_class(rows, DEEPEST)[0]["survival"]
    found = result.tokens_by_depth(rows, (0, 1, 2, 3), survival)
    assert [row["expected"] for row in found] == [1.0, 2.0, 2.5, 3.0]
    assert [row["measured"] for row in found] == [None, 1.75, None, 3.0]
    assert [row["rounds"] for row in found] == [0, 4, 0, 2]


def cell(depth: int, tok_per_s: float, best: int, **other: Any) -> dict[str, Any]:
    told = {"arm": f"static:{depth}", "concurrency": 4, "tok_per_s": tok_per_s, "blocks": 3}
    standing = {"best_fixed": f"static:{best}", "vs_best_fixed": None, "interval": None, "over": {}}
    return told | standing | other


COST = CostPrior(
    batch_size=np.array([4, 4, 4, 4, 1]),
    num_steps=np.array([OFF, 0, 1, 3, 3]),
    seconds=np.array([0.025, 0.03, 0.04, 0.05, 0.01]),
    rounds=np.array([90.0, 2.0, 50.0, 60.0, 70.0]),
)


def test_a_load_has_the_formula_beside_the_measurement():
    over = {"static:0": {"ratio": 1.3, "interval": [1.2, 1.4]}}
    cells = [
        cell(0, 190.0, 3, vs_best_fixed=0.77, interval=[0.7, 0.8]),
        cell(1, 240.0, 3, vs_best_fixed=0.98, interval=[0.95, 1.01]),
        cell(3, 247.0, 3, over=over),
    ]
    found = result.load_of(cells, {0: 1.0, 1: 1.5, 3: 2.5}, COST)
    assert found["best"] == found["predicted_best"] == 3
    assert found["level"] == [1] and found["over_depth_0"] == over["static:0"]
    rows = found["depths"]
    assert [row["predicted_tok_per_s"] for row in rows] == [160.0, 150.0, 200.0]
    assert [row["asleep"] for row in rows] == [True, False, False]
    assert [row["rounds"] for row in rows] == [90, 50, 60], "of batches of just this size"


def test_where_drafting_loses_the_fastest_depth_with_drafts_is_compared():
    cells = [
        cell(0, 200.0, 0),
        cell(1, 190.0, 0, vs_best_fixed=0.95, over={"static:0": {"ratio": 0.95, "interval": None}}),
        cell(3, 100.0, 0, vs_best_fixed=0.5, over={"static:0": {"ratio": 0.5, "interval": None}}),
    ]
    found = result.load_of(cells, {0: 1.0, 1: 1.5, 3: 2.5}, None)
    assert found["best"] == 0 and found["over_depth_0"]["ratio"] == 0.95
    assert found["predicted_best"] is None
    assert {row["predicted_tok_per_s"] for row in found["depths"]} == {None}


def test_empty_traces_are_left_out(tmp_path: Path):
    full = write_trace(tmp_path / "2.jsonl.gz", [record(0, 1)])
    (tmp_path / "1.jsonl.gz").touch()
    assert result.traces_in(tmp_path) == [full]
