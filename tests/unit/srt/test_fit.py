"""The warning that a draft no longer fits."""

from __future__ import annotations

import pytest

from sglang_speckv.config import SpecKVConfig
from sglang_speckv.policy.base import Round
from sglang_speckv.srt.counters import Counters
from sglang_speckv.srt.fit import ENOUGH_DRAFTS, LOOK_ROUNDS, QUIET_SECONDS, DraftFit

RIGHT, WRONG = Round(3, 8, [3] * 8), Round(3, 8, [0] * 8)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def serve(fit: DraftFit, counters: Counters, outcome: Round, rounds: int) -> None:
    for _ in range(rounds):
        counters.count(outcome)
        fit.round_done()


def test_it_is_told_once_an_hour_and_only_where_few_are_accepted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    counters, clock = Counters(SpecKVConfig(candidate_steps=(0, 1, 3))), Clock()
    fit = DraftFit(counters, clock)
    rounds = -(-ENOUGH_DRAFTS // 8 // LOOK_ROUNDS) * LOOK_ROUNDS
    serve(fit, counters, RIGHT, rounds)
    assert caplog.messages == []
    serve(fit, counters, WRONG, rounds)
    (told,) = caplog.messages
    assert told.startswith("SpecKV: 0 % of the last ") and "Below 55 %" in told
    serve(fit, counters, WRONG, rounds)
    assert len(caplog.messages) == 1
    clock.now += QUIET_SECONDS
    serve(fit, counters, WRONG, rounds)
    assert len(caplog.messages) == 2


def test_a_deep_draft_that_is_mostly_right_is_no_reason(caplog: pytest.LogCaptureFixture) -> None:
    """Two in three of what is judged, though most of what is verified is for nothing."""
    counters = Counters(SpecKVConfig(candidate_steps=(0, 7)))
    serve(DraftFit(counters), counters, Round(7, 8, [2] * 8), 8 * LOOK_ROUNDS)
    assert counters.correct_drafts < 0.3 * counters.proposed_drafts
    assert caplog.messages == []


def test_a_few_drafts_are_not_judged(caplog: pytest.LogCaptureFixture) -> None:
    counters = Counters(SpecKVConfig(candidate_steps=(0, 3)))
    serve(DraftFit(counters), counters, Round(3, 1, [0]), 4 * LOOK_ROUNDS)
    assert caplog.messages == []


def test_a_server_that_only_has_depth_0(caplog: pytest.LogCaptureFixture) -> None:
    counters = Counters(SpecKVConfig(candidate_steps=(0,)))
    serve(DraftFit(counters), counters, Round(0, 8, [0] * 8), 2 * LOOK_ROUNDS)
    assert caplog.messages == []
