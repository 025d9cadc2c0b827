"""SGLang's own adaptive rule, restated so that it also drives other drafts and offline replay.

Source: ``sglang/srt/speculative/adaptive_spec_params.py`` (0.5.23); a test drives both with the
same rounds and compares every step. Each slot follows the mean number of correct drafts of its
batch sizes, and moves to the tier just above it.
"""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sglang_speckv.config import ConfigError
from sglang_speckv.policy.base import Batch, Decision, Round
from sglang_speckv.policy.checks import correct_drafts_of, is_count, is_round, widths_of

DEFAULT_SLOTS: dict[str, dict[str, Any]] = {
    "1": {"candidate_steps": [1, 3, 5, 7]},
    "8": {"candidate_steps": [0, 1, 3], "down_hysteresis": 0.0},
    "32": {"candidate_steps": [0, 1], "down_hysteresis": 0.0},
    "64": {"candidate_steps": [0], "down_hysteresis": 0.0},
}
"""SGLang's ``DEFAULT_ADAPTIVE_CONFIG``; the keys are the smallest batch size of each slot."""

_SETTINGS = (
    "ema_alpha",
    "update_interval",
    "warmup_batches",
    "down_hysteresis",
    "up_hysteresis",
    "ceiling_coeff",
)


class EmaPolicy:
    """Routes a batch to the slot of its size, padded to a CUDA-graph batch size if there are any.

    The slots choose among their own steps. A user's slot with a step outside of
    ``candidate_steps``, the tiers that exist, is refused; SGLang's default slots are trimmed to
    them.
    """

    name = "ema"

    def __init__(
        self,
        candidate_steps: Sequence[int],
        initial_steps: int,
        adaptive_config: Mapping[str, Any] | None = None,
    ):
        self.candidate_steps = tuple(candidate_steps)
        self._slots = {
            size: _slot(size, settings, initial_steps, self.candidate_steps)
            for size, settings in sorted(read_slots(adaptive_config, self.candidate_steps).items())
        }
        self._sizes = list(self._slots)
        self._graph_sizes: list[int] = []

    def set_cuda_graph_bs(self, sizes: Sequence[int] | None) -> None:
        """Batches run padded to one of ``sizes``, and are routed by it."""
        self._graph_sizes = sorted(sizes or ())

    def decide(self, batch: Batch) -> Decision:
        return Decision(self._route(batch.size).num_steps, "ema")

    def observe(self, outcome: Round) -> None:
        if is_round(outcome, self.candidate_steps):
            correct, valid = correct_drafts_of(outcome.num_correct_drafts, outcome.num_steps)
            widths = widths_of(outcome, outcome.num_steps)
            if widths is not None:
                correct = correct[widths[valid] > 0]  # others were not drafted for
            self._route(outcome.batch_size).update(correct.tolist())

    def snapshot(self) -> dict[str, object]:
        return {
            str(size): {"num_steps": slot.num_steps, "ema": round(slot.ema, 3)}
            for size, slot in self._slots.items()
        }

    def _route(self, size: int) -> _Slot:
        size = size if is_count(size) else 1
        at = bisect.bisect_left(self._graph_sizes, size)
        padded = self._graph_sizes[at] if at < len(self._graph_sizes) else size
        return self._slots[self._sizes[max(0, bisect.bisect_right(self._sizes, padded) - 1)]]


@dataclass(slots=True)
class _Slot:
    steps: list[int]
    num_steps: int
    ema_alpha: float = 0.2
    update_interval: int = 5
    warmup_batches: int = 10
    down_hysteresis: float = -0.25
    up_hysteresis: float = 0.0
    ceiling_coeff: float = 0
    ema: float = field(init=False)
    """Mean correct drafts per request, without the bonus token."""
    batches: int = 0

    def __post_init__(self) -> None:
        self.ema = float(self.num_steps - 1)

    def update(self, num_correct_drafts: Sequence[int]) -> None:
        if len(num_correct_drafts) == 0:
            return
        if self.num_steps > 0:
            mean = sum(num_correct_drafts) / len(num_correct_drafts)
            self.ema = (1 - self.ema_alpha) * self.ema + self.ema_alpha * mean
        self.batches += 1
        due = self.batches - self.warmup_batches
        if due > 0 and due % self.update_interval == 0:
            self.num_steps = self._probe() if self.num_steps == 0 else self._next()

    def _probe(self) -> int:
        """Out of step 0, which yields no news, to the smallest positive step."""
        probe = self.steps[min(1, len(self.steps) - 1)]
        if probe > 0 and self.ema < 0:
            self.ema = float(probe - 1)
        return probe

    def _next(self) -> int:
        now = self.steps.index(self.num_steps)
        at = self._lowered(now)
        if at == now:
            at = self._raised(now)
        if self.ceiling_coeff > 0 and self.steps[at] <= self.num_steps:
            ceiling = max(1, math.ceil(self.ema * self.ceiling_coeff))
            while at > 0 and self.steps[at] > ceiling:
                at -= 1
        return self.steps[at]

    def _lowered(self, at: int) -> int:
        while at > 0:
            below = self.steps[at - 1]
            threshold = 0.5 if below == 0 else below - 0.5
            if self.ema > threshold + self.down_hysteresis:
                break
            at -= 1
        return at

    def _raised(self, at: int) -> int:
        while at < len(self.steps) - 1 and self.ema > self.steps[at] - 0.5 + self.up_hysteresis:
            at += 1
        return at


def is_slot(key: str) -> bool:
    """Whether a key of an adaptive config names a batch size, not a setting."""
    return re.fullmatch(r"[0-9]{1,9}", key) is not None


def read_slots(
    adaptive_config: Mapping[str, Any] | None, candidate_steps: tuple[int, ...]
) -> dict[int, dict[str, Any]]:
    """The settings of each slot; SGLang's default slots where the JSON has none of its own.

    Keys that are not batch sizes are defaults for every slot (or not ours, such as "speckv").
    """
    given = dict(adaptive_config or {})
    slots = {key: value for key, value in given.items() if is_slot(key)}
    slots = slots or default_slots(candidate_steps)
    common = {key: given[key] for key in _SETTINGS if key in given}
    for key, value in slots.items():
        if not isinstance(value, Mapping) or not _are_steps(value.get("candidate_steps")):
            raise ConfigError(
                f"slot {key!r} of the adaptive config is {value!r}; it needs candidate_steps, "
                "a non-empty list of non-negative integers"
            )
    return {int(key): {**common, **value} for key, value in slots.items()}


def default_slots(candidates: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """SGLang's default slots with the tiers that exist; where none of a slot's does, those that
    are no deeper."""
    return {
        size: {**slot, "candidate_steps": _trimmed(slot["candidate_steps"], candidates)}
        for size, slot in DEFAULT_SLOTS.items()
    }


def _trimmed(steps: list[int], candidates: tuple[int, ...]) -> list[int]:
    kept = [step for step in steps if step in candidates]
    return kept or [step for step in candidates if step <= max(steps)] or [candidates[0]]


def _are_steps(steps: Any) -> bool:
    return isinstance(steps, list) and bool(steps) and all(type(s) is int and s >= 0 for s in steps)


def _slot(
    size: int, settings: Mapping[str, Any], initial_steps: int, candidates: tuple[int, ...]
) -> _Slot:
    steps = sorted(set(settings["candidate_steps"]))
    missing = [step for step in steps if step not in candidates]
    if missing:
        raise ConfigError(
            f"policy 'ema' uses step {missing[0]} for batches of {size} and more; add it to the "
            f"candidate steps {','.join(map(str, candidates))} or give that slot other steps in "
            "the adaptive config"
        )
    start = initial_steps if initial_steps in steps else steps[len(steps) // 2]
    return _Slot(
        steps, start, **{key: _number(settings, key) for key in _SETTINGS if key in settings}
    )


def _number(settings: Mapping[str, Any], key: str) -> Any:
    value = settings[key]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not abs(value) < 1e9:  # NaN compares false, and 10**400 is no float
        raise ConfigError(f"{key} {value!r} in the adaptive config is not a number below 1e9")
    if key == "update_interval" and value < 1:
        raise ConfigError(f"update_interval {value!r} in the adaptive config is less than 1")
    if key == "ema_alpha" and not 0 <= value <= 1:
        raise ConfigError(f"ema_alpha {value!r} in the adaptive config is not in 0..1")
    return value
