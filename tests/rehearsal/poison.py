"""Copies to the host that are not there before their event says so.

On a device ``copy_(..., non_blocking=True)`` returns at once, and memory that is read too early
holds what was there before. On a CPU the copy is done when it returns, and nobody notices who did
not wait. Here the host's memory is poison until the event that was recorded behind the copy has
been waited for, or has been found done.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_under_way: list[Copy] = []
"""Copies that no event was recorded behind yet."""


class Copy:
    """The source as it was when the copy was asked for: later work of the stream comes later."""

    def __init__(self, source: Tensor) -> None:
        self._source = source.clone()
        self.host = poisoned(source)

    def arrive(self) -> None:
        self.host.copy_(self._source)


def poisoned(like: Tensor) -> Tensor:
    if like.is_floating_point():
        return torch.full_like(like, torch.nan)
    if like.dtype == torch.bool:
        return ~like
    return torch.full_like(like, torch.iinfo(like.dtype).min // 2)


def copy_to_host(source: Tensor) -> Tensor:
    """In the place of SGLang's ``_async_d2h``."""
    copy = Copy(source)
    _under_way.append(copy)
    return copy.host


class Event:
    """In the place of ``torch.cuda.Event``. Every second question whether it is done is answered
    with yes."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._copies: list[Copy] = []
        self._asked = 0

    def record(self, *_: Any, **__: Any) -> None:
        self._copies = _under_way[:]
        _under_way.clear()

    def synchronize(self) -> None:
        while self._copies:
            self._copies.pop().arrive()

    def wait(self, *_: Any, **__: Any) -> None:
        """Of a stream, which orders nothing for the host."""

    def query(self) -> bool:
        self._asked += 1
        if self._asked % 2 == 0:
            self.synchronize()
        return not self._copies


def install() -> None:
    """For a process that serves on a CPU."""
    from sglang.srt.managers import utils

    utils._async_d2h = copy_to_host
    torch.cpu.Event = Event
