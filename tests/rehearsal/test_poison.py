"""Who reads too early, reads poison."""

from __future__ import annotations

import math

import pytest
import torch

from sglang_speckv.srt.rounds import HEAD, Launch
from tests.rehearsal.poison import Event, copy_to_host


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_copy_arrives_with_its_event(dtype: torch.dtype) -> None:
    source = torch.tensor([1.0, 0.0]).to(dtype)
    expected = source.clone()
    host, event = copy_to_host(source), Event()
    event.record()
    source.fill_(0)  # the next round's numbers, in the same memory
    assert not torch.equal(host, expected)
    event.synchronize()
    assert torch.equal(host, expected)


def test_an_event_waits_for_what_was_asked_for_before_it() -> None:
    first, early = copy_to_host(torch.ones(1)), Event()
    early.record()
    second, late = copy_to_host(torch.ones(1)), Event()
    late.record()
    late.synchronize()
    assert first.isnan().all() and second.item() == 1
    assert [early.query(), early.query()] == [False, True] and first.item() == 1


@pytest.mark.parametrize("waits", [True, False])
def test_a_launch_that_forgets_its_event_is_found(waits: bool) -> None:
    payload = torch.full((HEAD + 2,), 0.5)
    host, event = copy_to_host(payload), Event()
    event.record()
    launch = Launch((), host, (1, 1, 2), early=True, ready=event if waits else None)
    found = launch.signals().ravel().tolist()
    assert found == [0.5, 0.5] if waits else all(map(math.isnan, found))
