"""SpecKV adds no more operators of torch to a round than stated, where nothing is captured."""

from __future__ import annotations

import pytest

from tests import operators
from tests.engine.conftest import PROMPTS, STEPS, Serving, on_pairs

pytestmark = [pytest.mark.engine, on_pairs("eagle3", "standalone-self")]


def test_speckv_adds_no_more_operators_than_stated(server: Serving) -> None:
    for num_steps in STEPS:
        server.pin(num_steps)
        server.generate(PROMPTS[:1], max_new_tokens=2 * operators.EVERY * (num_steps + 1))
    server.pin(-1)
    found = operators.read(server.log.read_text(errors="replace"))
    assert set(found) >= set(STEPS)
    for num_steps in STEPS:
        counts = found[num_steps]
        assert 0 < counts.ours <= operators.most(num_steps, captured=False)
        assert counts.reductions <= max(num_steps, 1)
