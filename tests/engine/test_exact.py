"""The text does not change, whatever a request asks for: every feature gives what the target alone
gives while the depth and every request's width move from round to round."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.engine.conftest import PAIRS, Serving, flags, on_pairs, serving
from tests.exact.features import FEATURES

ALL = os.environ.get("SPECKV_EXACT") == "all"
"""Every feature on every kind of draft; else on a head and on a draft model."""
pytestmark = [
    pytest.mark.engine,
    on_pairs(*(PAIRS if ALL else ("eagle3", "standalone-self"))),
]


@pytest.fixture(scope="session")
def alone(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every feature's answers of the target without speculation. Under the overlap scheduler, which
    the CPU engine has not where it speculates, SGLang counts a token for penalties a round late."""
    launch = [*flags(models), "--disable-overlap-schedule"]
    with serving(tmp_path_factory.mktemp("alone"), *launch) as plain:
        return {name: feature(plain) for name, feature in FEATURES.items()}


@pytest.mark.parametrize("name", FEATURES)
def test_feature(server: Serving, alone: dict[str, Any], name: str) -> None:
    server.select("throughput")
    with server.forced_rounds(depths=True):
        assert alike(FEATURES[name](server), alone[name])
    assert not server.speckv()["failures"]


def alike(left: Any, right: Any) -> bool:
    """Equal, floats within 1e-3."""
    if isinstance(left, float):
        return bool(left == pytest.approx(right, abs=1e-3))
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(alike, left, right))
    return bool(left == right)
