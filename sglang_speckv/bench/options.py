"""What can be asked of ``speckv ab``: one record for the flags and for the YAML file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from sglang_speckv.bench.arms import check_arm
from sglang_speckv.bench.traffic import TRAFFIC
from sglang_speckv.config import ConfigError
from sglang_speckv.files import read_bounded

DEFAULT_ARMS = (
    *("none", "default", "static:1", "static:2", "static:3", "static:5", "static:7"),
    *("ema", "speckv"),
)
DEFAULT_ROUNDS = 8
RESUMABLE = ("out", "minutes", "rounds", "spare", "together", "baseline", "timeout_s")
"""Options that may differ when a run is resumed."""
_MAX_FILE_BYTES = 1 << 20


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of a run. Without ``max_new_tokens`` the output length is the longest within
    ``token_bounds`` that lets every cell have a balanced set of blocks in ``minutes``. With
    ``spare`` and a limit in minutes, static arms that are far behind in a cell run less there.
    ``together``: all servers up at once; None is where memory allows, and on a GPU, whose memory
    servers divide among themselves as they start, one after another."""

    target: str | None = None
    drafts: tuple[str, ...] = ()
    artifacts: tuple[str, ...] = ()
    arms: tuple[str, ...] = DEFAULT_ARMS
    concurrency: tuple[int, ...] = (1, 4, 16)
    rate: tuple[float, ...] = ()
    traffic: tuple[str, ...] = ("mixed",)
    prompts: str | None = None
    max_new_tokens: int | None = None
    token_bounds: tuple[int, int] = (16, 128)
    requests_per_slot: int = 2
    together: bool | None = None
    spare: bool = True
    temperature: float = 0.0
    minutes: float | None = None
    rounds: int | None = None
    baseline: str | None = None
    check_static: int | None = None
    dtype: str | None = None
    server_flags: tuple[str, ...] = ()
    seed: int = 0
    timeout_s: float = 300.0
    out: str = "out/ab"

    def __post_init__(self) -> None:
        for arm in self.all_arms:
            check_arm(arm)
        _check_distinct("arms", self.all_arms)
        _check_distinct("concurrency", self.concurrency)
        _check_distinct("traffic", self.traffic)
        for concurrency in self.concurrency:
            _check_range("concurrency", concurrency, 1, 1024)
        for rate in self.rate:
            _check_range("rate", rate, 1e-3, 1e4)
        for traffic in self.traffic:
            if traffic not in TRAFFIC:
                raise ConfigError(f"unknown traffic {traffic!r}; choose from {', '.join(TRAFFIC)}")
        if self.base not in self.arms:
            raise ConfigError(
                f"the baseline {self.base!r} is not one of the arms {', '.join(self.arms)}; "
                "name one of them"
            )
        for name, low, high in (
            *(("max_new_tokens", 2, 1 << 16), ("minutes", 1, 1440), ("rounds", 1, 10_000)),
            *(("requests_per_slot", 1, 100), ("temperature", 0, 10), ("timeout_s", 1, 86400)),
            ("check_static", 1, 16),
        ):
            if getattr(self, name) is not None:
                _check_range(name, getattr(self, name), low, high)
        low, high = self.token_bounds
        if not 2 <= low <= high:
            raise ConfigError(f"token_bounds {low}, {high} are not 2 or more and ascending")

    @property
    def all_arms(self) -> tuple[str, ...]:
        """The arms, and those that checks need."""
        if self.check_static is None:
            return self.arms
        needed = (f"static:{self.check_static}", f"fresh:{self.check_static}")
        return (*self.arms, *(arm for arm in needed if arm not in self.arms))

    @property
    def base(self) -> str:
        """The arm that others are compared with: the one asked for, `none`, or the first."""
        return self.baseline or ("none" if "none" in self.arms else self.arms[0])

    @property
    def seconds(self) -> float:
        return math.inf if self.minutes is None else 60 * self.minutes

    @property
    def most_rounds(self) -> int | None:
        """Blocks per cell, None where only the time ends the run."""
        return DEFAULT_ROUNDS if self.rounds is None and self.minutes is None else self.rounds


def options_from(values: Mapping[str, Any], source: str) -> Options:
    """Options from builtins; an unknown key or a wrong type is refused by name."""
    try:
        return msgspec.convert(dict(values), Options)
    except msgspec.ValidationError as error:
        cause = error.__cause__
        if isinstance(cause, ConfigError):
            raise cause from None
        known = ", ".join(Options.__struct_fields__)
        raise ConfigError(f"{source}: {error}; the options are {known}") from None


def read_options(path: Path) -> dict[str, Any]:
    """The keys of a YAML file, unchecked."""
    import yaml

    content = read_bounded(path, _MAX_FILE_BYTES)
    try:
        values = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path} is not a mapping of options to values")
    return values


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also refuses NaN
        raise ConfigError(f"{name} {value} is not in {low:g}..{high:g}")


def _check_distinct(name: str, values: tuple[Any, ...]) -> None:
    if not values:
        raise ConfigError(f"{name} is empty")
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise ConfigError(f"{name} names {twice!r} twice" + _again(name, twice))


def _again(name: str, value: Any) -> str:
    return f"; to measure it twice, add {value}#2" if name == "arms" else ""
