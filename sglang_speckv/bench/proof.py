"""Is a server what its arms claim, and does it differ from the others in nothing else?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sglang_speckv.bench.arms import Arm

SAME = (
    *("effective_max_running_requests_per_dp", "max_total_tokens", "chunked_prefill_size"),
    *("max_prefill_tokens", "dtype", "kv_cache_dtype", "page_size", "tp_size", "quantization"),
    *("schedule_policy", "disable_radix_cache", "attention_backend"),
)
"""Settings that have to agree between servers; the first is what SGLang sets to 48 under
speculation and not otherwise."""
MUST_BE_SAME = SAME[:2]
SHOWN = (
    *("speculative_algorithm", "speculative_num_steps", "speculative_eagle_topk"),
    *("speculative_num_draft_tokens", "speculative_adaptive", "disable_overlap_schedule"),
)


def doubt(arm: Arm, state: Mapping[str, Any]) -> str | None:
    """Why this server is not serving ``arm``; None where its ``/server_info`` proves it is."""
    algorithm = state.get("speculative_algorithm")
    speckv = state.get("speckv")
    active = isinstance(speckv, Mapping) and speckv.get("active") is True
    if arm.name.startswith("url:"):
        return None
    if arm.base == "none":
        return f"it drafts ({algorithm})" if algorithm else None
    if not algorithm:
        return "speculative decoding is off"
    if arm.policy is not None:
        return None if active else "SpecKV is not active"
    if active:
        return "SpecKV is active"
    if arm.base == "ema":
        return None if state.get("speculative_adaptive") else "SGLang's adaptive rule is off"
    if arm.base.startswith("fresh:"):
        steps, topk = state.get("speculative_num_steps"), state.get("speculative_eagle_topk")
        wanted = int(arm.base.partition(":")[2])
        return None if (steps, topk) == (wanted, 1) else f"it runs {steps} steps, topk {topk}"
    return None


def settings_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """What the report shows of a server's ``internal_states`` entry."""
    return {key: state.get(key) for key in (*SAME, *SHOWN)}


def unequal(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Settings that have to agree and do not: key -> server -> value."""
    found: dict[str, dict[str, Any]] = {}
    for key in SAME:
        values = {server: of.get(key) for server, of in settings.items()}
        if len({str(value) for value in values.values()}) > 1:
            found[key] = values
    return found
