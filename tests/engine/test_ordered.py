"""The order of penalties in servers that others are compared with."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from tests.engine.ordered import ordered

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("turn", range(4))
def test_penalties_scale_last(monkeypatch: pytest.MonkeyPatch, turn: int) -> None:
    """In whatever order SGLang's set of them comes."""
    from sglang.srt.sampling import penaltylib

    orchestrator = penaltylib.BatchedPenalizerOrchestrator
    kinds = [getattr(penaltylib, name) for name in penaltylib.__all__]
    kinds.remove(orchestrator)
    monkeypatch.setattr(orchestrator, "__init__", orchestrator.__init__)
    ordered.register()
    batch = Mock(reqs=[], device="cpu")
    made = orchestrator(8, batch, [*kinds[turn:], *kinds[:turn]])
    assert [kind.is_multiplicative for kind in made.penalizers] == [False, False, False, True]
