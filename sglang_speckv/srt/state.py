"""SpecKV seen and steered from outside: ``/server_info`` and ``POST /set_internal_state``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang_speckv.config import ConfigError
from sglang_speckv.srt import profile

if TYPE_CHECKING:
    from sglang_speckv.srt.controller import EnginePolicy

PIN_KEY = "speckv_num_steps"  # value: a candidate, or -1 to release
AWAKE_KEY = "speckv_keep_awake"  # value: 1 or 0
PROFILE_KEY = profile.STATE_KEY
POLICY_KEY = "speckv_policy:"  # + name, value 1: SGLang's request carries numbers only


def add_speckv(result: None, self: Any, state: dict[str, Any]) -> None:
    """AFTER ``_add_speculative``: ``internal_states[].speckv``."""
    policy = _policy_of(self)
    if policy is not None:
        state["speckv"] = policy.snapshot()


def add_handlers(result: dict[str, Any], self: Any) -> dict[str, Any]:
    """AFTER ``_update_handlers``: one key that pins a depth, one that keeps the draft from sleeping
    at depth 0, one per policy that selects it."""
    from sglang.srt.managers.scheduler_components.internal_state import (
        UpdateRejected,
        _UpdateHandler,
    )

    policy = _policy_of(self)
    if policy is None:
        return result

    def validate_pin(key: str, value: Any) -> None:
        if value != -1 and value not in policy.candidate_steps:
            raise UpdateRejected(
                f"{key}={value!r} is not one of the candidate steps {policy.candidate_steps}; "
                "-1 releases"
            )

    def apply_pin(key: str, value: Any) -> None:
        policy.pin(None if value == -1 else int(value))

    def validate_policy(key: str, value: Any) -> None:
        if value != 1:
            raise UpdateRejected(f"{key} takes 1 (select this policy), got {value!r}")
        try:
            policy.prepare(key.removeprefix(POLICY_KEY))
        except ConfigError as error:
            raise UpdateRejected(f"{key}: {error}") from error

    def apply_policy(key: str, value: Any) -> None:
        policy.pin(None)
        policy.select(key.removeprefix(POLICY_KEY))

    def validate_switch(key: str, value: Any) -> None:
        if value not in (0, 1):
            raise UpdateRejected(f"{key} takes 1 (on) or 0 (off), got {value!r}")

    def apply_awake(key: str, value: Any) -> None:
        policy.kept_awake = bool(value)

    def apply_profile(key: str, value: Any) -> None:
        policy.start_profile() if value else policy.finish_profile()

    handlers = {
        PIN_KEY: _UpdateHandler(validate_pin, apply_pin),
        AWAKE_KEY: _UpdateHandler(validate_switch, apply_awake),
        PROFILE_KEY: _UpdateHandler(validate_switch, apply_profile),
    }
    for name in policy.selectable():
        handlers[POLICY_KEY + name] = _UpdateHandler(validate_policy, apply_policy)
    return {**result, **handlers}


def _policy_of(controller: Any) -> EnginePolicy | None:
    return getattr(controller.scheduler.draft_worker, "speckv", None)
