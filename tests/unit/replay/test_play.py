"""A policy under replay meets what it would meet in the engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sglang_speckv.offline.columns import read_columns
from sglang_speckv.offline.round_cost import AssumedCost
from sglang_speckv.policy import Batch, Decision, Round
from sglang_speckv.replay.play import Played, Table, always, oracle, play
from sglang_speckv.replay.rounds import Rounds, recorded_rounds
from sglang_speckv.replay.score import cells_of, compare, earn, load_of, rate
from tests.unit.offline.synthetic import Traffic, write_trace

TIERS = (0, 1, 3, 7)
COST = AssumedCost(0.1, 0.02)


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> Rounds:
    folder = tmp_path_factory.mktemp("trace")
    write_trace(folder / "a.jsonl.gz", Traffic(requests=12, rounds=30, batch=4).records())
    write_trace(folder / "b.jsonl.gz", Traffic(requests=3, rounds=20, batch=1).records())
    return recorded_rounds(read_columns([folder]))


def table_for(rounds: Rounds) -> Table:
    tokens, known = rounds.outcomes(TIERS)
    return Table(TIERS, tokens, known, COST.times(rounds.size, TIERS), np.ones(len(rounds)))


class Notes:
    """Plays a fixed sequence of depths and writes down what it is told."""

    name = "notes"
    candidate_steps = TIERS

    def __init__(self, depths: tuple[int, ...]):
        self._depths = depths
        self.batches: list[Batch] = []
        self.outcomes: list[tuple[int, Round]] = []

    def decide(self, batch: Batch) -> Decision:
        self.batches.append(batch)
        return Decision(self._depths[(len(self.batches) - 1) % len(self._depths)], "told", 1.5)

    def observe(self, outcome: Round) -> None:
        self.outcomes.append((len(self.batches), outcome))

    def snapshot(self) -> dict[str, object]:
        return {}


def test_batches_and_outcomes_are_the_recorded_ones(rounds: Rounds) -> None:
    policy, table = Notes((3, 7)), table_for(rounds)
    played = play(policy, rounds, table)
    assert played.chosen[:4].tolist() == [2, 3, 2, 3] and (played.expected == 1.5).all()
    columns, first = rounds.columns, rounds.row[:4]
    batch, (_, outcome) = policy.batches[0], policy.outcomes[0]
    assert batch.size == 4 and outcome.context_len == columns.context_len[first].sum()
    assert batch.first_probs == pytest.approx(columns.first_prob[first])
    assert outcome.num_steps == 3 and outcome.batch_size == 4
    assert outcome.num_correct_drafts == np.minimum(columns.num_correct_drafts[first], 3).tolist()
    assert outcome.seconds == pytest.approx(table.seconds[0, 2])
    assert outcome.first_probs is not None and outcome.signals is not None
    assert (outcome.first_probs == batch.first_probs).all()
    assert outcome.signals == pytest.approx(columns.signals[first, :3])


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_results_come_late_by_the_lag(rounds: Rounds, lag: int) -> None:
    policy = Notes((1,))
    play(policy, rounds, table_for(rounds), lag)
    assert policy.outcomes[0][0] == lag + 1
    assert len(policy.outcomes) == len(rounds) - lag


def test_an_unknown_outcome_teaches_nothing(tmp_path: Path) -> None:
    shallow = Traffic(requests=8, rounds=40, batch=1, depths=(1,))
    trace = write_trace(tmp_path / "a.jsonl.gz", shallow.records())
    rounds = recorded_rounds(read_columns([trace]))
    policy, table = Notes((7,)), table_for(rounds)
    played = play(policy, rounds, table)
    rejected = int((rounds.correct == 0).sum())
    assert 0 < len(policy.outcomes) == rejected < len(rounds)
    dropped = earn(rounds, table, cells_of(rounds), played).dropped
    assert dropped == pytest.approx(1 - rejected / len(rounds))


def test_an_unclean_round_has_no_time(rounds: Rounds) -> None:
    table = table_for(rounds)
    table.noise[3] = np.nan
    policy = Notes((1,))
    play(policy, rounds, table)
    assert [outcome.seconds is None for _, outcome in policy.outcomes[:5]] == [
        False, False, False, True, False,
    ]  # fmt: skip


def test_the_window_is_foreseen_on_request_only(rounds: Rounds) -> None:
    class Seer(Notes):
        def __init__(self) -> None:
            super().__init__((1,))
            self.windows: list[np.ndarray] = []

        def foresee(self, signals: np.ndarray) -> None:
            self.windows.append(signals)

    policy = Seer()
    play(policy, rounds, table_for(rounds), stop=5)
    assert len(policy.windows) == 5 == len(policy.batches)
    assert policy.windows[0] == pytest.approx(rounds.columns.signals[rounds.row[:4]])


def test_nothing_beats_the_oracle(rounds: Rounds) -> None:
    table, cells = table_for(rounds), cells_of(rounds)
    best = rate(earn(rounds, table, cells, oracle(table, cells.of)), cells.work)
    rng = np.random.default_rng(0)
    for tier in range(len(TIERS)):
        assert rate(earn(rounds, table, cells, always(tier, rounds)), cells.work) < best
    for _ in range(20):
        chosen = rng.integers(0, len(TIERS), len(rounds))
        anyhow = Played(chosen, np.full(len(rounds), np.nan))
        assert rate(earn(rounds, table, cells, anyhow), cells.work) < best


def test_the_oracle_stays_on_record(tmp_path: Path) -> None:
    shallow = Traffic(requests=8, rounds=40, batch=1, depths=(1, 7))
    trace = write_trace(tmp_path / "a.jsonl.gz", shallow.records())
    rounds = recorded_rounds(read_columns([trace]))
    table, cells = table_for(rounds), cells_of(rounds)
    assert earn(rounds, table, cells, oracle(table, cells.of)).dropped == 0


def test_sums_add_up(rounds: Rounds) -> None:
    table, cells = table_for(rounds), cells_of(rounds)
    earned = earn(rounds, table, cells, always(2, rounds))
    assert earned.tokens.sum() == table.tokens[:, 2].sum()
    assert earned.seconds.sum() == pytest.approx(table.seconds[:, 2].sum())
    assert earned.tokens.shape == (len(rounds.columns.prompts), len(cells))
    assert set(cells.loads) == {"3-4", "1"} and cells.work.sum() == len(rounds.row)


def test_over_cells_the_work_is_fixed(rounds: Rounds) -> None:
    table, cells = table_for(rounds), cells_of(rounds)
    earned = earn(rounds, table, cells, always(1, rounds))
    tokens, seconds = earned.tokens.sum(axis=0), earned.seconds.sum(axis=0)
    expected = cells.work.sum() / (cells.work * seconds / tokens).sum()
    assert rate(earned, cells.work) == pytest.approx(expected)
    assert rate(earned, cells.work, [0]) == pytest.approx(tokens[0] / seconds[0])


def test_intervals_are_paired(rounds: Rounds) -> None:
    table, cells = table_for(rounds), cells_of(rounds)
    arms = {f"{k}": earn(rounds, table, cells, always(i, rounds)) for i, k in enumerate(TIERS)}
    ratios = compare(arms, "3", cells.work)
    assert (ratios["3"].value, ratios["3"].low, ratios["3"].high) == (1.0, 1.0, 1.0)
    low, high = ratios["1"].low, ratios["1"].high
    assert low is not None and high is not None and low < ratios["1"].value < high


def test_loads_are_octaves() -> None:
    assert [load_of(size) for size in (1, 2, 3, 4, 5, 8, 9, 16, 17)] == [
        "1", "2", "3-4", "3-4", "5-8", "5-8", "9-16", "9-16", "17-32",
    ]  # fmt: skip
