"""docs/decision.md tells real rounds, as this code meets them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang_speckv.replay.explain import explain, lines
from sglang_speckv.replay.run import ReplayOptions

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("number", [240, 241])
def test_the_page_shows_what_replay_explains(number: int) -> None:
    """Where it does not, run the page's command again, and read the text around it again."""
    examples = ROOT / "examples"
    options = ReplayOptions(
        (examples / "positions" / "eagle3.safetensors",),
        ("throughput,stop=off,width=off",),
        cost=examples / "traces" / "eagle3",
        requests=(1,),
    )
    told = lines(explain(options, number))
    page = (ROOT / "docs" / "decision.md").read_text()
    assert "\n".join(f"    {line}" for line in told) in page
