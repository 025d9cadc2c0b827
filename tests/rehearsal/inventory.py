"""What the attention of every further depth holds, written to the log when SGLang has built it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor

_LINE = "depth {} holds {} wrappers, {} bytes on the device and {} pinned"
_FOLLOWED = ("flashinfer.", "sglang.srt.layers.attention.flashinfer_backend")
"""Modules of the objects that are looked into."""


class Stock(NamedTuple):
    """What one depth holds alone. Bytes."""

    wrappers: int
    device: int
    pinned: int


def take_stock() -> None:
    """Once in every process."""
    from sglang.srt.speculative.eagle_worker_v2 import EAGLEWorkerV2

    original = EAGLEWorkerV2.build_adaptive_runtime_state

    def build(self: Any, *args: Any, **kwargs: Any) -> Any:
        state = original(self, *args, **kwargs)
        draft = self._draft_worker
        launch = self._target_worker.model_runner.attn_backend
        backends = (launch, draft.draft_attn_backend, draft.draft_extend_attn_backend)
        shared = {_key(each) for _, each in _walk(backends)}
        print(_LINE.format(state.speculative_num_steps, *_stock(state, shared)), flush=True)
        return state

    EAGLEWorkerV2.build_adaptive_runtime_state = build


def read(log: str) -> dict[int, Stock]:
    """By depth."""
    pattern = _LINE.replace("{}", r"(\d+)")
    found = (map(int, match.groups()) for match in re.finditer(pattern, log))
    return {depth: Stock(*held) for depth, *held in found}


def _stock(state: Any, shared: set[int]) -> Stock:
    wrappers, device, pinned = 0, {}, {}
    backends = (
        *(state.target_attn_backend, state.draft_attn_backend),
        state.draft_extend_attn_backend,
    )
    for name, each in _walk(backends):
        if _key(each) in shared:
            continue
        if isinstance(each, Tensor):
            storage = each.untyped_storage()
            place = pinned if "pin_memory" in name else device
            place[storage.data_ptr()] = storage.nbytes()
        elif type(each).__name__.endswith("Wrapper"):
            wrappers += 1
    return Stock(wrappers, sum(device.values()), sum(pinned.values()))


def _key(each: Any) -> int:
    """Tensors over the same memory are one."""
    return each.untyped_storage().data_ptr() if isinstance(each, Tensor) else id(each)


def _walk(roots: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Every tensor and object below ``roots`` once, with the name it was found by."""
    todo, seen = [("", root) for root in roots], set()
    while todo:
        name, each = todo.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, dict):
            todo += [(name, value) for value in each.values()]
        elif isinstance(each, list | tuple):
            todo += [(name, value) for value in each]
        elif isinstance(each, Tensor):
            yield name, each
        elif type(each).__module__.startswith(_FOLLOWED):
            yield name, each
            todo += vars(each).items()
