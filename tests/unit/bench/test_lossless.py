"""Divergences are found where they start, and ties are told from losses."""

import asyncio
import math
from collections.abc import Sequence

from sglang_speckv.bench import lossless
from sglang_speckv.bench.load import Completion
from sglang_speckv.bench.lossless import (
    TIE_GAP,
    GapMeter,
    Verdict,
    divergences,
    first_difference,
    judge,
)
from sglang_speckv.bench.prompts import Prompt
from sglang_speckv.bench.results import BlockResult
from sglang_speckv.bench.traffic import Block, Condition, Segment

PROMPTS = (Prompt("a", "code", "x"), Prompt("b", "qa", "y"))


def result(*outputs: Sequence[int]) -> BlockResult:
    completions = tuple(Completion(tuple(output)) for output in outputs)
    block = Block(0, Condition("mixed", 2), (Segment(2, PROMPTS),))
    return BlockResult(block, 1.0, completions)


class Gaps:
    """Stands for the server without drafting; remembers what it was asked."""

    def __init__(self, gap: float) -> None:
        self.gap = gap
        self.asked: list[list[int]] = []

    async def top2_gap(self, input_ids: Sequence[int]) -> float:
        self.asked.append(list(input_ids))
        return self.gap


def verdict(gap: float, *ours: Sequence[int]) -> tuple[Verdict, Gaps]:
    server = Gaps(gap)
    meter = GapMeter(server, lambda prompt: [100])
    reference = result([1, 2, 3], [4, 5, 6])
    return asyncio.run(judge([result(*ours)] * 2, [reference] * 2, meter)), server


def test_first_difference():
    assert first_difference([1, 2], [1, 2]) is None
    assert first_difference([1, 2, 3], [1, 9, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == 2


def test_equal_answers_are_lossless_and_ask_nothing():
    found, server = verdict(5.0, [1, 2, 3], [4, 5, 6])
    assert found == Verdict(answers=4)
    assert found.lossless and server.asked == []


def test_the_question_is_the_prompt_and_what_came_before():
    found, server = verdict(0.5, [1, 2, 3], [4, 8, 8])
    places = divergences([result([1, 2, 3], [4, 8, 8])], [result([1, 2, 3], [4, 5, 6])])
    assert [place.position for place in places] == [1]
    assert server.asked == [[100, 4]]  # the same place twice is asked once
    assert found.gaps == (0.5, 0.5)
    assert not found.lossless


def test_a_tie_is_shown_but_no_loss():
    found, _ = verdict(1e-4, [1, 2, 3], [4, 8, 8])
    assert found.ties == 2
    assert found.lossless


def test_a_gap_as_wide_as_the_bound_is_a_loss():
    assert not verdict(TIE_GAP, [1, 2, 3], [4, 8, 8])[0].lossless
    assert verdict(0.999 * TIE_GAP, [1, 2, 3], [4, 8, 8])[0].lossless


def test_questions_are_bounded_and_what_was_not_asked_is_a_loss(monkeypatch):
    monkeypatch.setattr(lossless, "_MAX_CHECKS", 1)
    found, server = verdict(1e-4, [9, 2, 3], [4, 8, 8])
    assert found.gaps == (1e-4, math.inf, 1e-4, math.inf)
    assert len(server.asked) == 1 and not found.lossless
