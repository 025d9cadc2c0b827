"""SpecKV seen and steered from outside: ``/server_info`` and ``POST /set_internal_state``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from sglang_speckv.config import ConfigError
from sglang_speckv.srt import profile
from sglang_speckv.srt.controller import SECOND

if TYPE_CHECKING:
    from sglang_speckv.srt.controller import EnginePolicy

PIN_KEY = "speckv_num_steps"  # value: a candidate, or -1 to release
AWAKE_KEY = "speckv_keep_awake"  # value: 1 or 0
PROFILE_KEY = profile.STATE_KEY
POLICY_KEY = "speckv_policy:"  # + name, value 1: SGLang's request carries numbers only


def add_speckv(result: None, self: Any, state: dict[str, Any]) -> None:
    """AFTER ``_add_speculative``: ``internal_states[].speckv``."""
    policy = _policy_of(self)
    if policy is None:
        return
    state["speckv"] = {"active": True, "failed": "see the server's log"}
    with policy.fuse.guard("/server_info", holds=False):
        # In builtins already: SGLang would choke on anything else, outside of this guard.
        state["speckv"] = msgspec.to_builtins(policy.snapshot())


def add_handlers(result: dict[str, Any], self: Any) -> dict[str, Any]:
    """AFTER ``_update_handlers``: one key that pins a depth, one that keeps the draft from sleeping
    at depth 0, one that starts and ends the start-up profile, one per policy that selects it."""
    from sglang.srt.managers.scheduler_components.internal_state import (
        UpdateRejected,
        _UpdateHandler,
    )

    policy = _policy_of(self)
    if policy is None:
        return result
    control = _Control(policy)

    def handler(check: _Check, apply: _Apply) -> Any:
        def validate(key: str, value: Any) -> None:
            try:
                check(key, value)
            except Exception as error:  # whatever it is, the request is refused and serving goes on
                raise UpdateRejected(f"{key}={value!r}: {error}") from error

        def guarded(key: str, value: Any) -> None:
            with policy.fuse.guard("/set_internal_state", holds=False):
                apply(key, value)

        return _UpdateHandler(validate, guarded)

    handlers = {
        PIN_KEY: handler(control.check_pin, control.pin),
        AWAKE_KEY: handler(control.check_switch, control.keep_awake),
        PROFILE_KEY: handler(control.check_profile, control.profile),
    }
    with policy.fuse.guard("/set_internal_state", holds=False):
        for name in policy.selectable():
            handlers[POLICY_KEY + name] = handler(control.check_policy, control.select)
            handlers[POLICY_KEY + name + SECOND] = handlers[POLICY_KEY + name]
    return {**result, **handlers}


_Check = Callable[[str, Any], None]
_Apply = Callable[[str, Any], None]


class _Control:
    """What each key checks and does. A check raises :class:`ConfigError`."""

    def __init__(self, policy: EnginePolicy) -> None:
        self._policy = policy

    def check_pin(self, key: str, value: Any) -> None:
        if value != -1 and value not in self._policy.candidate_steps:
            raise ConfigError(
                f"not one of the candidate steps {self._policy.candidate_steps}; -1 releases"
            )

    def pin(self, key: str, value: Any) -> None:
        self._policy.pin(None if value == -1 else int(value))

    def check_switch(self, key: str, value: Any) -> None:
        if value not in (0, 1):
            raise ConfigError("takes 1 (on) or 0 (off)")

    def keep_awake(self, key: str, value: Any) -> None:
        self._policy.keep_awake(bool(value))

    def check_profile(self, key: str, value: Any) -> None:
        self.check_switch(key, value)
        if value and not self._policy.may_profile:
            raise ConfigError(
                "the profile runs once, before the server is ready; "
                "restart with --speckv-profile SECONDS to time rounds again"
            )

    def profile(self, key: str, value: Any) -> None:
        self._policy.start_profile() if value else self._policy.finish_profile()

    def check_policy(self, key: str, value: Any) -> None:
        if value != 1:
            raise ConfigError("takes 1 (select this policy)")
        self._policy.prepare(key.removeprefix(POLICY_KEY))

    def select(self, key: str, value: Any) -> None:
        self._policy.pin(None)
        self._policy.select(key.removeprefix(POLICY_KEY))


def _policy_of(controller: Any) -> EnginePolicy | None:
    return getattr(controller.scheduler.draft_worker, "speckv", None)
