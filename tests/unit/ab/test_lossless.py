"""Answers that are not the reference's are read back token by token; ties are told from losses."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from sglang_speckv.ab.lossless import TextCheck, Verdict, tie_gap
from sglang_speckv.ab.request import Prompt

PROMPTS = (Prompt("a", "code", "x"), Prompt("b", "qa", "y"))


class Target:
    """Stands for the server without drafting; remembers what it was asked. The token 9 is ``gap``
    below the likeliest one, whatever stands before it."""

    def __init__(self, gap: float) -> None:
        self.gap = gap
        self.asked: list[tuple[list[int], list[int]]] = []

    async def gaps(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        self.asked.append((list(prompt), list(answer)))
        return [self.gap if token == 9 else 0.0 for token in answer]


def verdict(
    gap: float,
    *ours: Sequence[int],
    dtype: str = "float32",
    blocks: int = 2,
    reference: Sequence[int] = (1, 2, 3),
) -> tuple[Verdict, Target]:
    target = Target(gap)
    check = TextCheck(target, lambda prompt: [100], tie_gap(dtype))
    answers = [
        (prompt, tuple(answer), tuple(expected))
        for prompt, answer, expected in zip(PROMPTS, ours, (reference, [4, 5, 6]), strict=True)
    ]
    return asyncio.run(check.verdict(answers * blocks)), target


def test_equal_answers_are_lossless_and_ask_nothing():
    found, target = verdict(5.0, [1, 2, 3], [4, 5, 6])
    assert (found.answers, found.identical, found.lossless) == (4, 4, True)
    assert target.asked == [] and str(found) == "4 of 4 identical"


def test_every_token_of_another_answer_is_looked_at():
    """The first difference is the target's own choice; a later token is not."""
    found, target = verdict(0.5, [1, 2, 3], [4, 8, 9])
    assert target.asked == [([100], [4, 8, 9])], "the same answer twice is asked about once"
    assert found.gaps == (0.5, 0.5) and found.lost == 2 and found.lossless is False
    assert str(found) == "2 of 4 identical, 2 LOST, gap up to 0.5"


def test_a_tie_is_shown_but_no_loss():
    found, _ = verdict(1e-4, [1, 2, 3], [4, 9, 8])
    assert (found.ties, found.lost, found.lossless) == (2, 0, True)
    assert str(found) == "2 of 4 identical, 2 ties"


@pytest.mark.parametrize(
    ("dtype", "gap", "lossless"),
    [
        *(("float32", 0.9e-3, True), ("float32", 1.1e-3, False), ("float32", float("nan"), False)),
        *(("bfloat16", 0.2, True), ("bfloat16", 0.3, False), ("float16", 0.3, False)),
    ],
)
def test_what_a_tie_may_have(dtype: str, gap: float, lossless: bool):
    assert verdict(gap, [9, 2, 3], [4, 5, 6], dtype=dtype)[0].lossless is lossless


def test_every_distinct_answer_is_asked_about():
    answers = [(PROMPTS[0], (i, 2, 3), (1, 2, 3)) for i in range(10, 1510)]
    target = Target(0.0)
    check = TextCheck(target, lambda prompt: [100], tie_gap("float32"))
    found = asyncio.run(check.verdict(answers))
    assert (len(target.asked), found.ties, found.lossless) == (1500, 1500, True)


@pytest.mark.parametrize("reference", [[1, 2, 3], []])
def test_an_answer_without_tokens_is_unchecked(reference: Sequence[int]):
    found, target = verdict(0.0, [], [4, 5, 6], reference=reference)
    assert (found.identical, found.unchecked, target.asked) == (2, 2, [])
    assert str(found) == "2 of 4 identical, 2 unchecked"


@pytest.mark.parametrize(
    ("found", "lossless"),
    [
        (Verdict(3, 2, (0.0,), 0.1), True),
        (Verdict(3, 2, (0.2,), 0.1), False),
        (Verdict(4, 2, (0.2,), 0.1), False),
        (Verdict(4, 2, (0.0,), 0.1), None),
        (Verdict(0, 0, (), 0.1), None),
    ],
)
def test_what_was_not_wholly_checked_is_not_called_lossless(found: Verdict, lossless: bool | None):
    assert found.lossless is lossless
