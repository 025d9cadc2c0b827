"""What a decode round sets aside where the KV cache is nearly full."""

from __future__ import annotations

import pytest

from sglang_speckv.config import Shape
from sglang_speckv.srt import kv_reserve
from sglang_speckv.srt.kv_reserve import KVReserve, check_decode_mem, reserve_per_decode

USUAL = 16
"""Twice the tokens of the deepest round, as SGLang reserves."""


@pytest.fixture(params=[(False, 1), (True, 9)], ids=["no overlap", "overlap"])
def reserve(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> KVReserve:
    fresh = KVReserve()
    monkeypatch.setattr(kv_reserve, "RESERVE", fresh)
    overlap, least = request.param
    fresh.serve([Shape(0, 1), Shape(1, 2), Shape(7, 8)], overlap)
    assert fresh.least == least
    return fresh


def check(left: int) -> bool:
    def fits(self: object, selected: object) -> bool:
        return reserve_per_decode(lambda: USUAL) <= left

    return check_decode_mem(fits, None)


def test_a_round_drafts_where_there_is_room_for_it(reserve: KVReserve) -> None:
    assert check(USUAL) and not reserve.short


def test_it_does_not_where_only_its_own_token_has_room(reserve: KVReserve) -> None:
    for left in (USUAL - 1, reserve.least or 0):
        assert check(left) and reserve.short
        assert reserve_per_decode(lambda: USUAL) == reserve.least
    assert check(USUAL) and not reserve.short, "of one round"


def test_requests_are_put_back_where_there_is_no_room_at_all(reserve: KVReserve) -> None:
    assert not check((reserve.least or 0) - 1) and not reserve.short


def test_nothing_changes_where_nobody_serves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_reserve, "RESERVE", KVReserve())
    assert not check(USUAL - 1) and check(USUAL)
