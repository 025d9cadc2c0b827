"""What a user can set, in one frozen record, and the error that names what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

DEFAULT_CANDIDATE_STEPS = (0, 1, 2, 3, 5, 7)
MAX_NUM_STEPS = 16
DEFAULT_PROFILE_SECONDS = 20.0
MAX_PROFILE_SECONDS = 600.0
SIGNAL_LAGS = ("auto", "late", "0")
STOPS = ("auto", "off")
WIDTHS = ("auto", "off")
EXACT = ("on", "off")
SWITCHES = (",stop=off", ",width=off", ",stop=off,width=off")
"""Behind a policy's name where two ways of it are compared: its rounds do not stop by what their
drafts say, or do not verify less of a request than of another."""
POLICY_NAMES = (
    "throughput",
    "ema",
    "throughput_aware",
    "confidence",
    "paper",
    "paper:throughput",
    "static:K",
)
_NUMBER = r"[0-9]{1,4}"
"""As a user writes one: int() would also take "+1", "1_0" and other scripts' digits."""
_STATIC = re.compile(rf"static:({_NUMBER})")
_STEPS = re.compile(rf" *{_NUMBER} *(, *{_NUMBER} *)*")


class ConfigError(ValueError):
    """A setting that cannot be served: one sentence with the bad value and the remedy.

    Becomes exit code 2 at the command line's edge and stays a ``ValueError`` in Python. The bad
    value may come from anyone's file, so what cannot be printed is written as its escape: the
    sentence stays one line and steers no terminal.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in sentence))


def parse_steps(text: str) -> tuple[int, ...]:
    """``"0,1,3"`` -> ``(0, 1, 3)``; raises :class:`ConfigError` on anything else."""
    if not _STEPS.fullmatch(text):
        raise ConfigError(
            f"candidate steps {text!r} are not comma-separated integers, such as 0,1,3,5"
        )
    return tuple(int(part) for part in text.split(","))


def static_steps(policy: str) -> int | None:
    """The K of ``static:K``, or None where ``policy`` is another one."""
    match = _STATIC.fullmatch(policy)
    return int(match.group(1)) if match else None


def without_switches(policy: str) -> tuple[str, bool, bool]:
    """A policy's name without one of :data:`SWITCHES`, whether its rounds may stop, and whether
    they may verify a width per request."""
    off = next((switches for switches in reversed(SWITCHES) if policy.endswith(switches)), "")
    return policy.removesuffix(off), "stop=off" not in off, "width=off" not in off


def joined(steps: tuple[int, ...], extra: int | None) -> tuple[int, ...]:
    """``steps`` with ``extra`` among them, ascending."""
    return steps if extra is None else tuple(sorted({*steps, extra}))


@dataclass(frozen=True)
class SpecKVConfig:
    """Settings of the plugin; travels to every process under the ``"speckv"`` key of the
    ``--speculative-adaptive-config`` JSON.

    ``candidate_steps`` are the tiers that are built at start-up, ascending; 0 is "do not draft".
    ``ema_config`` holds the user's own batch-size slots in SGLang's adaptive-config form, for the
    ``ema`` policy; None means SGLang's defaults. ``signal_lag``: see
    :mod:`sglang_speckv.srt.lag`. ``trace`` is a folder for per-round records, ``artifact`` a file
    that `speckv train` made. ``profile_seconds`` bounds the rounds that are timed before serving; 0
    learns while serving. ``stop``, ``width``: see :mod:`sglang_speckv.srt.in_round`; ``exact``: see
    :mod:`sglang_speckv.srt.exact`; ``max_context``: :mod:`sglang_speckv.srt.bounds`.
    """

    policy: str = "throughput"
    candidate_steps: tuple[int, ...] = DEFAULT_CANDIDATE_STEPS
    ema_config: Mapping[str, Any] | None = None
    signal_lag: str = "auto"
    trace: str | None = None
    artifact: str | None = None
    profile_seconds: float = DEFAULT_PROFILE_SECONDS
    stop: str = "auto"
    width: str = "auto"
    exact: str = "on"
    max_context: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidate_steps", _checked_steps(self.candidate_steps))
        _check_policy(self.policy, self.candidate_steps)
        if self.ema_config is not None and not isinstance(self.ema_config, Mapping):
            raise ConfigError(f"ema_config {self.ema_config!r} is not a JSON object")
        if self.signal_lag not in SIGNAL_LAGS:
            raise ConfigError(
                f"signal lag {self.signal_lag!r} is not one of {', '.join(SIGNAL_LAGS)}"
            )
        for name, value, values in (
            ("stop", self.stop, STOPS),
            ("width", self.width, WIDTHS),
            ("exact", self.exact, EXACT),
        ):
            if value not in values:
                raise ConfigError(f"{name} {value!r} is not one of {', '.join(values)}")
        for name, path in (("trace", self.trace), ("artifact", self.artifact)):
            if path is not None and (not isinstance(path, str) or not path):
                raise ConfigError(f"{name} {path!r} is not a path")
        _check_profile_seconds(self.profile_seconds)
        most = self.max_context
        if most is not None and (type(most) is not int or most < 1):
            raise ConfigError(
                f"max context {most!r} is not a number of tokens from 1 on; "
                "leave it out for no limit"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SpecKVConfig:
        """Build from JSON; an unknown key is refused by name.  The step of ``static:K`` joins the
        default candidates; candidates that were given have to hold it."""
        if not isinstance(values, Mapping):
            raise ConfigError(f'the "speckv" settings are {values!r}, not a JSON object')
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(
                f"unknown speckv setting {unknown[0]!r}; the settings are {', '.join(known)}"
            )
        steps = joined(DEFAULT_CANDIDATE_STEPS, static_steps(str(values.get("policy"))))
        return cls(**{"candidate_steps": steps, **values})

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "candidate_steps": list(self.candidate_steps)}


def _checked_steps(steps: Any) -> tuple[int, ...]:
    if not isinstance(steps, list | tuple) or not steps:
        raise ConfigError(f"candidate steps {steps!r} are not a non-empty list of integers")
    for step in steps:
        if type(step) is not int or not 0 <= step <= MAX_NUM_STEPS:
            raise ConfigError(f"candidate step {step!r} is not an integer in 0..{MAX_NUM_STEPS}")
    return tuple(sorted(set(steps)))


def _check_profile_seconds(seconds: Any) -> None:
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not 0 <= seconds <= MAX_PROFILE_SECONDS:  # NaN fails both comparisons
        raise ConfigError(
            f"profile seconds {seconds!r} is not a number in 0..{MAX_PROFILE_SECONDS:.0f}; "
            "0 learns while serving"
        )


def _check_policy(policy: Any, candidate_steps: tuple[int, ...]) -> None:
    if not isinstance(policy, str) or (
        policy not in POLICY_NAMES[:-1] and static_steps(policy) is None
    ):
        raise ConfigError(f"unknown policy {policy!r}; choose from {', '.join(POLICY_NAMES)}")
    pinned = static_steps(policy)
    if pinned is not None and pinned not in candidate_steps:
        raise ConfigError(
            f"policy {policy!r} pins a step that is not a candidate; add {pinned} to the "
            f"candidate steps {','.join(map(str, candidate_steps))}"
        )
