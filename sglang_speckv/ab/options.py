"""What can be asked of ``speckv ab``: one record for the flags and for the YAML file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from sglang_speckv.ab.arms import check_arms
from sglang_speckv.config import ConfigError
from sglang_speckv.files import BAD_JSON, read_bounded

DEFAULT_ARMS = (
    *("none", "default", "static:1", "static:2", "static:3", "static:5", "static:7"),
    *("ema", "speckv", "speckv#2"),
)
DEFAULT_BLOCKS = 8
RESUMABLE = ("out", "minutes", "blocks", "together", "timeout_s")
"""Options that may differ when a run is resumed."""
_MAX_FILE_BYTES = 1 << 20

Traffic = Literal["mixed", "phases", "sweep", "bursty"]
_Count = Annotated[int, Meta(ge=1, le=1024)]
_Rate = Annotated[float, Meta(ge=1e-3, le=1e4)]
_Milliseconds = Annotated[float, Meta(gt=0, le=86_400_000)]


class Goodput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a request must keep to count as good, in milliseconds: the time to first token, the time
    per output token, the end-to-end latency."""

    ttft: _Milliseconds | None = None
    tpot: _Milliseconds | None = None
    e2e: _Milliseconds | None = None


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of a run. ``together``: run all servers of a draft at once (None: where memory allows, on
    a GPU never, where each server takes most of it). ``own_memory``: each server sizes its own KV
    cache, so that what several depths cost in memory shows; servers then run one at a time.
    Otherwise all get what the prompts need. ``minutes`` is for all sessions of a run."""

    target: str | None = None
    drafts: tuple[str, ...] = ()
    artifacts: tuple[str, ...] = ()
    arms: Annotated[tuple[str, ...], Meta(min_length=1)] = DEFAULT_ARMS
    concurrency: Annotated[tuple[_Count, ...], Meta(min_length=1)] = (1, 4, 16)
    rate: tuple[_Rate, ...] = ()
    traffic: Annotated[tuple[Traffic, ...], Meta(min_length=1)] = ("mixed",)
    prompts: str | None = None
    max_new_tokens: Annotated[int, Meta(ge=2, le=1 << 16)] = 256
    requests_per_slot: Annotated[int, Meta(ge=1, le=100)] = 1
    together: bool | None = None
    own_memory: bool = False
    temperature: Annotated[float, Meta(ge=0, le=10)] = 0.0
    minutes: Annotated[float, Meta(ge=1, le=1440)] | None = None
    blocks: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    goodput: Goodput | None = None
    dtype: str | None = None
    server_flags: tuple[str, ...] = ()
    flush_urls: bool = False
    seed: Annotated[int, Meta(ge=0)] = 0
    timeout_s: Annotated[float, Meta(ge=1, le=86400)] = 300.0
    out: str = "out/ab"

    def __post_init__(self) -> None:
        check_arms(self.arms)
        for name in ("arms", "concurrency", "traffic"):
            _check_distinct(name, getattr(self, name))
        if self.rate and not {"mixed", "phases"} & {*self.traffic}:
            raise ConfigError(
                f"a rate goes with mixed and phases only: {self.traffic[0]} moves the number of "
                "requests itself; add mixed to the traffic"
            )
        _check_distinct("url arms", tuple(arm.partition("=")[0] for arm in self.arms if "=" in arm))
        if self.own_memory and self.together:
            raise ConfigError(
                "own_memory and together exclude each other: servers that are up at once divide "
                "the memory; drop one of them"
            )

    @property
    def seconds(self) -> float:
        return math.inf if self.minutes is None else 60 * self.minutes

    @property
    def most_blocks(self) -> float:
        """Blocks under each condition, infinitely many where only the time ends the run."""
        if self.blocks is None:
            return DEFAULT_BLOCKS if self.minutes is None else math.inf
        return self.blocks


def options_from(values: Mapping[str, Any], source: str) -> Options:
    """Options from builtins; an unknown key, a wrong type or a value out of range is refused by
    name."""
    try:
        return msgspec.convert(dict(values), Options)
    except BAD_JSON as error:  # a lone surrogate too, which JSON and YAML can spell
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


def _check_distinct(name: str, values: tuple[Any, ...]) -> None:
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        again = f"; to measure it twice, add {twice}#2" if name == "arms" else ""
        raise ConfigError(f"{name} names {twice!r} twice{again}")
