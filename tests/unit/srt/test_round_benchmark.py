"""``benchmarks/round.py`` stands in for SGLang's worker: what SpecKV's asks of it is all there."""

from __future__ import annotations

from benchmarks.round import PARTS, measure


def test_every_part_is_timed() -> None:
    found = measure(2, 20)
    assert set(found) == {*PARTS, "all"}
    del found["drafting"]  # rounds of one draft have none
    assert all(figures["p99_us"] >= figures["median_us"] > 0.0 for figures in found.values())
