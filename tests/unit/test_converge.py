"""When a new policy counts as settled."""

import numpy as np
import pytest

from benchmarks.converge import ROUNDS, WINDOW, settled, windows
from sglang_speckv.replay.walk import Played

WORSE, SAME = [0.9], [1.0]
CASES = {
    "at once": (SAME * 20, 0),
    "after two windows": (WORSE * 2 + SAME * 18, 2 * WINDOW),
    "noise of one window": (WORSE * 2 + SAME * 5 + [0.95] + SAME * 12, 2 * WINDOW),
    "never": (WORSE * 20, ROUNDS),
    "slow": ([0.97] * 4 + [0.985] * 16, 3 * WINDOW),
}


@pytest.mark.parametrize(("ratios", "rounds"), CASES.values(), ids=CASES)
def test_settled(ratios: list[float], rounds: int) -> None:
    assert settled(ratios) == rounds


def test_windows_add_up() -> None:
    rounds = ROUNDS + 5
    every = np.ones(rounds)
    played = Played(
        every.astype(int), every, 0.1 * every, np.zeros(2 * rounds), np.full(2 * rounds, 3)
    )
    found = windows(played)
    assert found.shape == (ROUNDS // WINDOW, 2)
    np.testing.assert_allclose(found, [[WINDOW * 6, WINDOW * 0.1]] * len(found))
