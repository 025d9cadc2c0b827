"""Round times read off traces: cells, the fit beyond them, and what cannot be known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sglang_speckv.config import ConfigError
from sglang_speckv.offline.columns import read_columns
from sglang_speckv.offline.round_cost import (
    EXACT,
    AssumedCost,
    MeasuredCost,
    measure_cost,
    table_of,
)
from sglang_speckv.policy.prior import OFF, CostPrior
from tests.unit.offline.synthetic import Traffic, write_trace


def prior(rows: list[tuple[int, int, float]], rounds: float = 50.0) -> CostPrior:
    sizes, steps, seconds = (np.array(column) for column in zip(*rows, strict=True))
    return CostPrior(sizes, steps, seconds.astype(float), np.full(len(rows), rounds))


def test_the_mean_of_each_cell_ignores_outliers(tmp_path: Path) -> None:
    traffic = Traffic(depths=(7, 1), jitter=0.02)
    records = [
        record if record.round % 40 else type(record)(**{**as_dict(record), "seconds": 9.0})
        for record in traffic.records()
    ]
    columns = read_columns([write_trace(tmp_path / "a.jsonl.gz", records)])
    cost = measure_cost(columns)
    assert cost.num_steps.tolist() == [1, 7] and cost.rounds.tolist() == [120.0, 120.0]
    assert cost.seconds == pytest.approx([traffic.seconds(1), traffic.seconds(7)], rel=0.02)


def test_rounds_that_were_not_verified_in_full_are_left_out(tmp_path: Path) -> None:
    """One request of every other round."""
    traffic = Traffic(depths=(7, 1), jitter=0.02)
    records, seen = [], set[int]()
    for record in traffic.records():
        if record.round % 4 < 2 and record.round not in seen:
            changes = {"num_verified": 0, "num_correct_drafts": 0}
            record = type(record)(**{**as_dict(record), **changes})
        seen.add(record.round)
        if record.round % 4 < 2:
            record = type(record)(**{**as_dict(record), "seconds": 0.001})
        records.append(record)
    cost = measure_cost(read_columns([write_trace(tmp_path / "a.jsonl.gz", records)]))
    assert cost.rounds.tolist() == [60.0, 60.0]
    assert cost.seconds == pytest.approx([traffic.seconds(1), traffic.seconds(7)], rel=0.02)


def as_dict(record: object) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__struct_fields__}  # type: ignore[attr-defined]


def test_the_structure_carries_over_to_other_sizes_and_depths() -> None:
    rows = [
        (size, k, 0.04 + 0.003 * max(k - 1, 0) + 0.001 * size * (k + 1))
        for size in (1, 4, 8)
        for k in (1, 3, 7)
    ]
    cost = MeasuredCost(prior(rows), "here")
    assert not cost.knows_off and cost.measured(4, 3) and not cost.measured(16, 3)
    times = cost.times(np.array([16, 1, 16]), [0, 5])
    assert times[0] == pytest.approx([0.056, 0.148]) and times[1] == pytest.approx([0.041, 0.058])
    assert (times[2] == times[0]).all()


def test_a_cell_outweighs_the_fit_by_its_rounds() -> None:
    rows = [(1, 1, 0.05), (1, 3, 0.06), (1, 5, 0.07), (1, 7, 0.2)]
    costs = [MeasuredCost(prior(rows, rounds), "here") for rounds in (2, 50, EXACT)]
    thin, thick, exact = (float(cost.times(np.array([1]), [7])[0, 0]) for cost in costs)
    assert thin < thick < exact == pytest.approx(0.2)
    assert costs[1].misfit > 0.1 and not costs[0].measured(1, 7) and costs[1].measured(1, 7)
    assert MeasuredCost(prior(rows[:3]), "here").misfit == pytest.approx(0, abs=1e-6)


def test_no_speculation_is_its_own_row() -> None:
    rows = [(1, OFF, 0.03), (4, OFF, 0.036), (1, 0, 0.04), (1, 3, 0.05), (4, 3, 0.06)]
    cost = MeasuredCost(prior(rows), "here")
    assert cost.knows_off
    assert cost.times(np.array([1, 2]), [OFF])[:, 0] == pytest.approx([0.03, 0.032])


def test_one_depth_does_not_tell_what_others_cost() -> None:
    with pytest.raises(ConfigError, match="one depth only"):
        MeasuredCost(prior([(1, 7, 0.1), (4, 7, 0.2)]), "here")


def test_a_trace_without_times_is_refused(tmp_path: Path) -> None:
    records = [type(r)(**{**as_dict(r), "seconds": None}) for r in Traffic(requests=4).records()]
    columns = read_columns([write_trace(tmp_path / "a.jsonl.gz", records)])
    with pytest.raises(ConfigError, match="no recorded round has a time"):
        measure_cost(columns)


def test_assumed_costs_follow_the_formula() -> None:
    cost = AssumedCost(0.1, 0.01)
    times = cost.times(np.array([1, 4]), [OFF, 0, 1, 3])
    assert times[0] == pytest.approx([1.0, 1.1, 1.11, 1.33])
    assert times[1] == pytest.approx([1.03, 1.13, 1.17, 1.45])
    with pytest.raises(ConfigError, match="draft-cost"):
        AssumedCost(-1.0)
    with pytest.raises(ConfigError, match="draft-cost"):
        AssumedCost(float("nan"))


def test_a_cost_written_out_as_a_table() -> None:
    table = table_of(AssumedCost(0.1), [1, 8], [0, 1, 2])
    assert table.at(8) == pytest.approx({0: 1.1, 1: 1.1, 2: 1.2})
    assert table.at(6) == table.at(8), "the nearest size counts"
