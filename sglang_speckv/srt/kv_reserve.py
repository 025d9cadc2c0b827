"""Where the KV cache is nearly full, rounds do not draft, and requests stay.

SGLang sets twice the deepest tier's tokens aside for every request of a decode round, and retracts
or aborts requests where the pool lacks them. Without speculation it needs one. Here such a round
runs at the shallowest depth instead, which needs no more than its own tokens and, under the overlap
scheduler, those of the round whose result is not known yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sglang_speckv.config import Shape


class KVReserve:
    """One per scheduler process, between SGLang's functions and the worker."""

    def __init__(self) -> None:
        self.least: int | None = None
        """Tokens per request that a round at the shallowest depth needs; None where nobody serves
        it."""
        self.short = False
        """The round to come has to be one."""

    def serve(self, shapes: Sequence[Shape], overlap: bool) -> None:
        """From now on a round may be asked to run at the first of these."""
        in_flight = max(shape.num_draft_tokens for shape in shapes) if overlap else 0
        self.least = shapes[0].num_draft_tokens + in_flight


RESERVE = KVReserve()


def check_decode_mem(
    original: Callable[..., bool], self: Any, selected_indices: list[int] | None = None
) -> bool:
    """AROUND ``ScheduleBatch.check_decode_mem``, which SGLang asks before every decode round and
    again after every retraction."""
    RESERVE.short = False
    enough = original(self, selected_indices)
    if not enough and RESERVE.least is not None:
        RESERVE.short = True
        enough = RESERVE.short = original(self, selected_indices)
    return enough


def slots_behind_the_end(result: int) -> int:
    """AFTER ``get_req_to_token_extra_context_len``: an answer may use the whole context, and then
    what is set aside for a round lies behind its end. SGLang leaves about half of that room."""
    from sglang.srt.mem_cache.allocation_sizing import get_alloc_reserve_per_decode

    return max(result, get_alloc_reserve_per_decode())


def reserve_per_decode(original: Callable[[], int]) -> int:
    """AROUND ``get_alloc_reserve_per_decode``."""
    usual = original()
    if not RESERVE.short or RESERVE.least is None:
        return usual
    return min(RESERVE.least, usual)
