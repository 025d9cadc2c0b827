"""What a record says about other depths, and how requests are put together anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_speckv.config import ConfigError
from sglang_speckv.offline.columns import Columns, read_columns
from sglang_speckv.offline.records import Record
from sglang_speckv.replay.rounds import Rounds, drafted_to, recorded_rounds, regroup
from tests.unit.offline.synthetic import Traffic, write_trace


def record(number: int, request: str, depth: int, correct: int, batch: int = 1) -> Record:
    return Record(
        round=number,
        request=request,
        batch_size=batch,
        context_len=10,
        num_steps=depth,
        num_correct_drafts=correct,
        seconds=0.1,
    )


def columns_of(tmp_path: Path, records: list[Record]) -> Columns:
    return read_columns([write_trace(tmp_path / "a.jsonl.gz", records)])


@pytest.mark.parametrize(
    ("depth", "correct", "tokens"),
    [
        (3, 1, {0: 1, 1: 2, 2: 2, 3: 2, 5: 2}),  # a rejection says it all
        (3, 3, {0: 1, 1: 2, 2: 3, 3: 4, 5: None}),  # nobody knows what would have come
        (0, 0, {0: 1, 1: None, 2: None, 3: None, 5: None}),
        (5, 0, {0: 1, 1: 1, 2: 1, 3: 1, 5: 1}),
    ],
)
def test_what_one_request_says(
    tmp_path: Path, depth: int, correct: int, tokens: dict[int, int | None]
) -> None:
    rounds = recorded_rounds(columns_of(tmp_path, [record(0, "a", depth, correct)]))
    would, known = rounds.outcomes(list(tokens))
    assert known[0].tolist() == [value is not None for value in tokens.values()]
    assert [n for n in would[0][known[0]]] == [n for n in tokens.values() if n is not None]


def test_a_batch_knows_what_all_its_requests_know(tmp_path: Path) -> None:
    pair = [record(0, "a", 3, 3, batch=2), record(0, "b", 3, 1, batch=2)]
    tokens, known = recorded_rounds(columns_of(tmp_path, pair)).outcomes([1, 3, 5])
    assert tokens[0, :2].tolist() == [4, 6] and known[0].tolist() == [True, True, False]


@given(truth=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 7)), min_size=1, max_size=6))
def test_what_is_known_is_true(truth: list[tuple[int, int]]) -> None:
    """``truth``: how deep each request of a batch would really go, and what was drafted."""
    deep, depth = np.array(truth).T
    rounds = batch_of(depth, np.minimum(deep, depth))
    tiers = list(range(9))
    tokens, known = rounds.outcomes(tiers)
    really = [int((np.minimum(deep, k) + 1).sum()) for k in tiers]
    assert [n for n, k in zip(tokens[0], known[0], strict=True) if k] == [
        n for n, k in zip(really, known[0], strict=True) if k
    ]
    assert known[0, : depth.min() + 1].all()


def batch_of(depth: np.ndarray, correct: np.ndarray) -> Rounds:
    n = len(depth)

    class Two:
        num_steps, num_correct_drafts = depth, correct

    return Rounds(
        Two(),  # type: ignore[arg-type]
        np.arange(n),
        np.array([0, n]),
        np.array([n]),
        np.array([0.1]),
    )


def test_rounds_of_two_files_stay_apart(tmp_path: Path) -> None:
    write_trace(tmp_path / "a.jsonl.gz", [record(1, "x", 2, 1, 2), record(1, "y", 2, 0, 2)])
    write_trace(tmp_path / "b.jsonl.gz", [record(0, "z", 2, 1), record(1, "z", 2, 2)])
    rounds = recorded_rounds(read_columns([tmp_path]))
    assert rounds.live.tolist() == [2, 1, 1] and rounds.size.tolist() == [2, 1, 1]
    assert rounds.context_len.tolist() == [20, 10, 10]


def test_more_records_than_requests_are_refused(tmp_path: Path) -> None:
    twice = [record(0, "a", 2, 1), record(0, "b", 2, 1)]
    with pytest.raises(ConfigError, match="more records than its batch_size"):
        recorded_rounds(columns_of(tmp_path, twice))


@pytest.fixture(scope="module")
def columns(tmp_path_factory: pytest.TempPathFactory) -> Columns:
    path = tmp_path_factory.mktemp("trace") / "a.jsonl.gz"
    return read_columns([write_trace(path, Traffic(requests=23, rounds=17).records())])


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("traffic", ["mixed", "phases"])
def test_regrouped_requests_keep_their_own_order(columns: Columns, size: int, traffic: str) -> None:
    rounds = regroup(columns, size, traffic)
    requests = columns.request[rounds.row].reshape(-1, size)
    assert all(len(set(batch)) == size for batch in requests.tolist()), "distinct requests"
    assert len(set(rounds.row.tolist())) == len(rounds.row), "no record twice"
    for request in np.unique(requests):
        own = rounds.row[columns.request[rounds.row] == request]
        assert (np.diff(columns.round[own]) > 0).all()
    assert len(rounds.row) >= (1 if size == 1 else 0.5) * len(columns)


def test_phases_do_not_mix_labels_and_mixed_traffic_does(columns: Columns) -> None:
    assert (regroup(columns, 4, "phases").label() >= 0).all()
    assert (regroup(columns, 4, "mixed").label() < 0).any()


def test_regrouping_is_deterministic(columns: Columns) -> None:
    first, second = (regroup(columns, 4).row for _ in range(2))
    assert (first == second).all()


@pytest.mark.parametrize(
    ("size", "traffic", "problem"),
    [(24, "mixed", "fewer than 24"), (0, "mixed", "not a batch size"), (2, "wild", "wild")],
)
def test_what_cannot_be_regrouped_is_refused(
    columns: Columns, size: int, traffic: str, problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        regroup(columns, size, traffic)


def test_only_deep_rounds_on_demand(tmp_path: Path) -> None:
    mixed = Traffic(requests=4, rounds=10, depths=(7, 3))
    columns = columns_of(tmp_path, list(mixed.records()))
    deep = drafted_to(columns, 7)
    assert len(deep) == len(columns) / 2 and (deep.num_steps == 7).all()
    assert recorded_rounds(deep).outcomes([0, 3, 7])[1].all()
    with pytest.raises(ConfigError, match="depth 9"):
        drafted_to(columns, 9)
