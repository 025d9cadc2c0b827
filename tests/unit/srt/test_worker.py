"""What a worker says of drafts that will not be accepted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sglang_speckv.srt.bounds import Bounds
from sglang_speckv.srt.worker import SpecKVMixin


def worker(no_widths: str | None) -> Any:
    """Of four requests the second takes no drafts, the third one at most, and the last is decoded
    exactly."""
    made: Any = SpecKVMixin.__new__(SpecKVMixin)
    made.speckv = SimpleNamespace(no_widths=no_widths)
    made._bounds = Bounds(np.array([9, 0, 1, 0]))
    made._exact = SimpleNamespace(rows=[3])
    return made


@pytest.mark.parametrize(
    ("no_widths", "closed", "left"),
    [(None, [1, 3], [2, 0, 1, 0]), ("the graphs verify whole depths", [3], [2, 2, 2, 0])],
    ids=["widths", "whole depths"],
)
def test_bounds_close_a_request_where_widths_can_hold_them(
    no_widths: str | None, closed: list[int], left: list[int]
) -> None:
    """Elsewhere its drafts are verified, and what they are worth is to be known."""
    found, probs = worker(no_widths), np.full((4, 2), 0.5)
    assert list(found._closed()) == closed
    assert (found._open(probs) > 0.0).sum(axis=1).tolist() == left
    assert (probs == 0.5).all()
