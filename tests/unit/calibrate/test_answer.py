"""The recommendation is a sentence that the figures bear out."""

from __future__ import annotations

from typing import Any

import pytest

from sglang_speckv.calibrate.answer import answer, fixed, paying

PAYS, LEVEL, LOSES = (1.4, [1.3, 1.5]), (1.02, [0.97, 1.08]), (0.9, [0.85, 0.96])


def load(requests: int, best: int = 3, over: Any = PAYS, **other: Any) -> dict[str, Any]:
    ratio = over and {"ratio": over[0], "interval": over[1]}
    rows = [{"num_steps": depth, "blocks": 3, "asleep": depth == 0} for depth in (0, 1, 3)]
    told = {"best": best, "level": [], "predicted_best": best, "over_depth_0": ratio}
    return {"concurrency": requests, "depths": rows, **told, **other}


def record(*loads: dict[str, Any], artifact: str | None = "a.safetensors") -> dict[str, Any]:
    tokens = [
        {"num_steps": depth, "measured": measured, "expected": 9.0}
        for depth, measured in ((0, 1.0), (1, 1.52), (3, 2.04))
    ]
    survival = [{"class": "all", "rounds": 9, "survival": [0.52, 0.3, 0.2]}]
    return {"survival": survival, "tokens": tokens, "loads": list(loads), "artifact": artifact}


@pytest.mark.parametrize(
    ("loads", "said"),
    [
        ([(1, 3)], "3 at every load"),
        ([(1, 3), (4, 3)], "3 at every load"),
        ([(1, 3), (4, 3), (16, 1)], "3 up to 4 requests, 1 above"),
        ([(1, 5), (4, 3), (16, 0)], "5 at 1 request, 3 up to 4 requests, no drafts above"),
        ([(1, 0), (4, 0)], "no drafts at every load"),
    ],
)
def test_the_fixed_depth_of_each_load(loads: list[tuple[int, int]], said: str):
    assert fixed([load(*one) for one in loads]) == said


@pytest.mark.parametrize(
    ("loads", "said"),
    [
        ([(1, PAYS)], "pays at 1 request (1.40 [1.30, 1.50] of depth 0)"),
        (
            [(1, PAYS), (4, PAYS), (8, LEVEL), (16, LOSES)],
            "pays at 1 and 4 requests (1.40 [1.30, 1.50] and 1.40 [1.30, 1.50] of depth 0), makes "
            "no difference that shows at 8 requests (1.02 [0.97, 1.08] of depth 0), does not pay "
            "at 16 requests (0.90 [0.85, 0.96] of depth 0)",
        ),
        (
            [(1, (1.9, None))],
            "was run too little to say whether it pays at 1 request (1.90 of depth 0)",
        ),
        ([(1, None)], "was not compared with depth 0"),
    ],
)
def test_whether_it_pays(loads: list[tuple[int, Any]], said: str):
    assert paying([load(requests, over=over) for requests, over in loads]) == said


def test_what_to_serve_with_comes_first():
    first, second, third = answer(record(load(1), load(16, best=1)))
    assert first == (
        "Serve with --speckv a.safetensors. If the depth must be fixed: 3 at 1 request, 1 above."
    )
    assert second.startswith(
        "52% of the first drafts are right, a round of depth 3 brings 2.04 tokens; this draft pays"
    )
    assert "its draft asleep" in third


def test_without_an_artifact_and_without_drafts():
    first, second, _ = answer(record(load(1, best=0, over=LOSES), artifact=None))
    assert first.startswith("Serve with --speckv. If")
    assert second.startswith("52% of the first drafts are right; this draft does not pay at 1")


def test_what_to_doubt_is_said():
    few = load(16, predicted_best=1)
    few["depths"] = [row | {"blocks": 2, "asleep": False} for row in few["depths"]]
    near = load(1, predicted_best=1, level=[1])
    _, _, *doubts = answer(record(near, load(4, predicted_best=1), few))
    assert len(doubts) == 3
    assert doubts[0].startswith("At 4 requests the formula picks depth 1 and the measurement 3")
    assert doubts[1].startswith("At 16 requests there are fewer than 3 blocks")
    assert "still reads every token" in doubts[2]


def test_of_a_draft_that_nobody_saw_at_depth_0_nothing_is_said():
    unseen = load(1)
    unseen["depths"] = [row | {"asleep": None} for row in unseen["depths"]]
    *_, doubt = answer(record(unseen))
    assert doubt.startswith("Depth 0") and "asleep" not in doubt and "reads" not in doubt
    assert "asleep" in answer(record(unseen, load(4)))[-1]
