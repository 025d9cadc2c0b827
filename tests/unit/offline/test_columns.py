"""Traces as columns: what is read, padded, named, and refused."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest

from sglang_speckv.config import ConfigError
from sglang_speckv.offline.columns import read_columns
from sglang_speckv.offline.records import Record
from tests.unit.offline.synthetic import HEADER, Traffic, write_trace

RECORD = Record(
    round=3, request="code:7:1", batch_size=2, context_len=50, num_steps=2, num_correct_drafts=1
)


def changed(**values: object) -> Record:
    return msgspec.structs.replace(RECORD, **values)


def test_records_become_columns(tmp_path: Path) -> None:
    rich = changed(
        request="plain", top1_prob=(0.5, 0.25), entropy=(math.log(1000), 0.0), first_prob=0.5,
        seconds=0.1,
    )  # fmt: skip
    columns = read_columns([write_trace(tmp_path / "a.jsonl.gz", [RECORD, rich])])
    assert columns.labels == ("code", "") and columns.prompts == ("code:7", "plain")
    assert columns.round.tolist() == [3, 3] and columns.num_correct_drafts.tolist() == [1, 1]
    assert math.isnan(columns.first_prob[0]) and columns.first_prob[1] == 0.5
    assert math.isnan(columns.seconds[0]) and columns.seconds[1] == 0.1
    assert np.isnan(columns.signals[0]).all()
    assert columns.signals[1] == pytest.approx(np.array([[0.5, 1.0], [0.25, 0.0]]))


def test_a_position_without_a_signal_is_unknown(tmp_path: Path) -> None:
    record = changed(top1_prob=(0.5, -1.0), entropy=(1.0, -1.0))
    columns = read_columns([write_trace(tmp_path / "a.jsonl.gz", [record])])
    assert np.isnan(columns.signals[0]).tolist() == [[False, False], [True, True]]


def test_files_of_other_depths_are_joined(tmp_path: Path) -> None:
    write_trace(tmp_path / "a.jsonl.gz", Traffic(requests=2, rounds=3, depths=(1,)).records())
    write_trace(tmp_path / "b.jsonl.gz", Traffic(requests=2, rounds=3, depths=(5,)).records())
    columns = read_columns([tmp_path])
    assert columns.signals.shape == (12, 5, 2)
    assert np.isnan(columns.signals[:6, 1:]).all() and not np.isnan(columns.signals[6:]).any()
    assert len(columns.requests) == 4, "the same id in two files is two requests"
    assert len(columns.prompts) == 2, "but one prompt"


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (changed(num_steps=17), "num_steps"),
        (changed(num_correct_drafts=3), "num_correct_drafts"),
        (changed(num_correct_drafts=-1), "num_correct_drafts"),
        (changed(num_verified=3), "num_verified"),
        (changed(num_correct_drafts=2, num_verified=1), "num_correct_drafts"),
        (changed(batch_size=0), "batch_size"),
        (changed(context_len=-1), "context_len"),
        (changed(first_prob=1.5), "first_prob"),
        (changed(seconds=0.0), "seconds"),
        (changed(round=-1), "round number"),
        (changed(round=1 << 62), "round number"),
    ],
)
def test_an_impossible_record_is_refused_by_name(
    tmp_path: Path, record: Record, problem: str
) -> None:
    trace = write_trace(tmp_path / "a.jsonl.gz", [RECORD, record])
    with pytest.raises(ConfigError, match=problem):
        read_columns([trace])


def test_two_pairs_of_models_are_refused(tmp_path: Path) -> None:
    write_trace(tmp_path / "a.jsonl.gz", [RECORD])
    other = msgspec.structs.replace(HEADER, draft="another")
    write_trace(tmp_path / "b.jsonl.gz", [RECORD], other)
    with pytest.raises(ConfigError, match="draft 'another'"):
        read_columns([tmp_path])


def test_a_trace_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no record"):
        read_columns([write_trace(tmp_path / "a.jsonl.gz", [])])
