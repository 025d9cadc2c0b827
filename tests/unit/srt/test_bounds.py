"""What requests say of their own drafting."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sglang_speckv.config import SpecKVConfig
from sglang_speckv.srt.bounds import Bounds, problem
from sglang_speckv.srt.controller import EnginePolicy


def request(asked: Any) -> Any:
    return SimpleNamespace(sampling_params=SimpleNamespace(custom_params=asked))


def bounded(*steps: int | None) -> list[Any]:
    return [request(None if k is None else {"speckv": {"max_steps": k}}) for k in steps]


@pytest.mark.parametrize(
    "asked", [None, {}, {"other": 1}, {"speckv": {}}, {"speckv": {"max_steps": 2}}]
)
def test_what_can_be_served(asked: Any) -> None:
    assert problem(asked) is None


@pytest.mark.parametrize(
    "asked",
    [
        1,
        None,
        [],
        {"max_step": 2},
        *({"max_steps": v} for v in (-1, 1.5, True, "2", [1])),
    ],
)
def test_what_cannot_is_told_in_one_sentence(asked: Any) -> None:
    told = problem({"speckv": asked})
    assert told is not None and "max_steps" in told and "\n" not in told
    assert Bounds.of([request({"speckv": asked})]).most is None, "it bounds nothing"


@pytest.mark.parametrize("steps", [2**30, 2**63, 10**30])
def test_a_huge_one_bounds_nothing(steps: int) -> None:
    """Whatever its size, the array keeps its type."""
    assert problem({"speckv": {"max_steps": steps}}) is None
    bounds = Bounds.of(bounded(steps, 1))
    assert bounds.most is None
    narrow = bounds.narrowed(None, 3)
    assert narrow is not None and narrow.dtype == np.int64 and narrow.tolist() == [3, 1]


def test_a_batch_without_bounds_is_left_alone() -> None:
    bounds, probs = Bounds.of(bounded(None, None)), np.ones((2, 3))
    assert bounds.most is None
    assert bounds.blanked(probs) is probs
    assert bounds.narrowed(None, 3) is None


def test_each_request_has_its_own() -> None:
    bounds = Bounds.of(bounded(None, 0, 2, 9), [])
    assert bounds.most is None
    assert bounds.blanked(np.ones((4, 3))).sum(axis=1).tolist() == [3, 0, 2, 3]
    assert bounds.narrowed(None, 3).tolist() == [3, 0, 2, 3]  # type: ignore[union-attr]
    widths = np.array([1, 3, 1, 3])
    assert bounds.narrowed(widths, 3).tolist() == [1, 0, 1, 3]  # type: ignore[union-attr]
    assert Bounds.of(bounded(9, 3)).narrowed(None, 3) is None, "nothing is cut"


@pytest.mark.parametrize(
    ("steps", "undrafted", "most"),
    [((2, 4), [], 4), ((2, None), [], None), ((2, None), [1], 2), ((2, None), [0, 1], 0)],
)
def test_how_deep_a_round_may_be(steps: Any, undrafted: list[int], most: int | None) -> None:
    bounds = Bounds.of(bounded(*steps), undrafted)
    assert bounds.most == most
    assert bounds.closed == undrafted


@pytest.mark.parametrize(("most", "chosen"), [(None, 3), (5, 3), (2, 1), (0, 1)])
def test_the_policy_is_held_to_it(most: int | None, chosen: int) -> None:
    engine = EnginePolicy(SpecKVConfig(policy="static:3", candidate_steps=(1, 3)), 3)
    engine.most_steps = most
    assert engine.get_steps_for_batch(2) == chosen
    assert engine.decision is not None
    assert (engine.decision.reason == "bounded") == (chosen == 1)


def test_the_policy_is_not_asked_where_nothing_may_be_drafted() -> None:
    """Or it would take the round for the probe or the look that it decided."""
    engine = EnginePolicy(SpecKVConfig(candidate_steps=(0, 3)), 3)
    engine.most_steps = 0
    assert engine.get_steps_for_batch(2) == 0
    assert engine.counters.decisions == 0
    engine.most_steps = None
    assert engine.get_steps_for_batch(2) == 3 and engine.counters.decisions == 1


@pytest.mark.parametrize(("most", "narrow"), [(None, None), (5, None), (4, [3, 0]), (3, [0, 0])])
def test_long_ones_take_no_drafts(most: int | None, narrow: list[int] | None) -> None:
    """Of four tokens, and of five."""
    reqs = bounded(None, None)
    for req, answered in zip(reqs, (1, 2), strict=True):
        req.origin_input_ids, req.output_ids = [7, 7, 7], [7] * answered
    found = Bounds.of(reqs, [], most).narrowed(None, 3)
    assert found is None if narrow is None else found is not None and found.tolist() == narrow
