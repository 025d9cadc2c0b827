"""The soak's own judgement: what it asks, what it finds wrong, and how sure it is of a slope."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from benchmarks.soak import ODD_LINE
from benchmarks.soak_checks import contradictions, slope
from benchmarks.soak_requests import CONTEXT, EXACT_SHARE, Answer, Asked, Mix, problem_of

RIGHT = {
    "correct_drafts": 4,
    "proposed_drafts": 10,
    "cut_drafts": 2,
    "drafted_tokens": 12,
    "held": False,
    "failures": {},
    "fallbacks": 0,
    "odd_signals": 0,
    "odd_times": 0,
}


def test_what_is_asked() -> None:
    mix, again = Mix(3), Mix(3)
    drawn = [mix.draw() for _ in range(2000)]
    assert drawn == [again.draw() for _ in range(2000)]
    assert len({asked.rid for asked in drawn}) == len(drawn)
    kinds = Counter(asked.kind for asked in drawn)
    assert kinds["exact"] == pytest.approx(EXACT_SHARE * len(drawn), rel=0.3)
    assert min(kinds.values()) > 20 and len(kinds) == 11
    assert {asked.gives_up for asked in drawn} == {"", "hang-up", "abort"}
    assert not any(asked.compared for asked in drawn if asked.gives_up)
    for asked in drawn:
        assert asked.tokens + len(asked.body["input_ids"]) < CONTEXT
    lengths = [asked.tokens for asked in drawn]
    assert min(lengths) <= 12 and max(lengths) >= 100


def answer(output: int, told: int, asked: int = 8, reason: str = "length", **meta: Any) -> Answer:
    body = {"sampling_params": {"max_new_tokens": asked, "ignore_eos": True}}
    found = {"completion_tokens": told, "finish_reason": {"type": reason}, **meta}
    return Answer(Asked("greedy", "a", body), list(range(output)), found)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (answer(8, 8), ""),
        (answer(8, 8, spec_verify_ct=3, spec_num_correct_drafts=4), ""),
        (answer(8, 9), "9 were counted"),
        (answer(9, 9), "9 tokens came"),
        (answer(7, 7), "7 of 8"),
        (answer(5, 5, reason="abort"), ""),
        (answer(5, 5, reason="abort", spec_verify_ct=1, spec_num_correct_drafts=1), "1 rounds"),
        (Answer(Asked("greedy", "a", {})), "no answer"),
        (Answer(Asked("hang-up", "a", {}, gives_up="hang-up")), ""),
    ],
)
def test_what_an_answer_contradicts(given: Answer, said: str) -> None:
    found = problem_of(given)
    assert said in found and bool(said) == bool(found)


@pytest.mark.parametrize(
    "wrong",
    [
        {"correct_drafts": 11},
        {"drafted_tokens": 13},
        {"held": True},
        {"failures": {"metrics": 1}},
        {"fallbacks": 1},
        {"odd_signals": 1},
        {"odd_times": 1},
    ],
)
def test_what_counters_contradict(wrong: dict[str, Any]) -> None:
    assert contradictions(RIGHT) == []
    assert len(contradictions({**RIGHT, **wrong})) == 1


@pytest.mark.parametrize(
    ("line", "odd"),
    [
        ("Traceback (most recent call last):", True),
        ("RuntimeError: no", True),
        ("[2026-11-30 00:17:18] SpecKV: tracing a round failed (OSError(28))", True),
        ("[2026-11-30 00:17:18] SpecKV: serving 3 steps until a policy is selected", True),
        ("[2026-11-30 00:17:18] SpecKV: profiled round times in 3.0 s", False),
        (
            '[2026-11-30 00:17:18] INFO:     127.0.0.1:41236 - "POST /generate HTTP/1.1" 200 OK',
            False,
        ),
    ],
)
def test_what_is_odd_in_a_log(line: str, odd: bool) -> None:
    assert bool(ODD_LINE.search(line)) == odd


@pytest.mark.parametrize("true", [0.0, 40.0])
def test_the_slope(true: float) -> None:
    """The interval holds the truth in about 95 of 100 hours, and the warm-up does not count."""
    rng, held = np.random.default_rng(0), 0
    hours = np.linspace(0, 1, 100)
    for _ in range(200):
        memory = 900 + true * hours + rng.normal(0, 3, 100)
        memory[:20] -= 300
        found = slope(list(zip(hours.tolist(), memory.tolist(), strict=True)))
        assert found is not None and found["cycles"] == 80
        low, high = found["interval"]
        held += low <= true <= high
        assert not true or low > 0
    assert held > 180
    assert slope([(0.0, 1.0), (0.1, 1.0), (0.2, 1.0)]) is None
