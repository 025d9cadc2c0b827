"""What arms earned, by request, and how sure a ratio is."""

from __future__ import annotations

import numpy as np
import pytest

from sglang_speckv.replay.score import Earned, earned, over_best
from sglang_speckv.replay.walk import Played


def test_a_rounds_time_is_shared_by_its_requests() -> None:
    steps = np.array([1, 1])
    played = Played(
        steps, steps * np.nan, np.array([1.0, 3.0]), np.array([0, 1, 0, 2]), np.array([2, 1, 2, 1])
    )
    found = earned([played, played], 4)
    assert found.tokens.tolist() == [8, 2, 2, 0]
    assert found.seconds.tolist() == [4, 1, 3, 0] and found.rate == 12 / 8


def arm(rng: np.random.Generator, speed: np.ndarray) -> Earned:
    return Earned(np.full(len(speed), 100.0), 100.0 / speed)


def test_the_best_fixed_depth_is_picked_anew_in_each_resample() -> None:
    """Two fixed depths, each good for half of the requests: by chance one is ahead of the other,
    and an arm that is as good as one of them is never ahead of the better one."""
    rng = np.random.default_rng(0)
    half = np.repeat([1.0, 1.3], 20)
    arms = {
        "static:1": arm(rng, half),
        "static:3": arm(rng, half[::-1]),
        "same": arm(rng, half),
        "faster": arm(rng, half * 1.1),
    }
    found = over_best(arms, ["static:1", "static:3"])
    assert found["same"].value == pytest.approx(1.0) and found["same"].high <= 1.0
    assert found["same"].low < 1.0, "in some resamples the other one is ahead"
    assert found["faster"].value == pytest.approx(1.1)
    assert found["faster"].low < 1.1 and found["faster"].high == pytest.approx(1.1)
    assert found["static:1"].high <= 1.0


def test_two_requests_give_no_interval() -> None:
    rng = np.random.default_rng(0)
    found = over_best({"static:1": arm(rng, np.ones(2))}, ["static:1"])
    assert found["static:1"].low is None
