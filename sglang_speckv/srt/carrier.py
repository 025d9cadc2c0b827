"""Settings ride to every process under the ``"speckv"`` key of SGLang's own
``--speculative-adaptive-config`` JSON, which stock SGLang ignores.

The batch-size slot beside it exists for SGLang: the largest of its candidate steps sizes every
buffer, for a chain of that depth. The file is content-addressed, so that the same settings
give the same path and a running server's file is never rewritten.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sglang_speckv.config import ConfigError, Shape, SpecKVConfig
from sglang_speckv.files import BAD_JSON, read_bounded, write_atomically
from sglang_speckv.policy.ema import is_slot

KEY = "speckv"
_MAX_BYTES = 1 << 20
_MAX_NESTING = 16
"""Far beyond any setting, far below what copying a record of settings can take."""


def load_json(path: str) -> dict[str, Any]:
    """Read an adaptive-config file, or raise :class:`ConfigError` naming it."""
    raw = read_bounded(Path(path), _MAX_BYTES, "check --speculative-adaptive-config")
    try:
        values = json.loads(raw)
    except BAD_JSON as error:
        raise ConfigError(
            f"--speculative-adaptive-config {path!r} is not valid JSON: {error}"
        ) from error
    if not isinstance(values, dict) or not _is_shallow(values, _MAX_NESTING):
        raise ConfigError(
            f"--speculative-adaptive-config {path!r} does not hold a JSON object of at most "
            f"{_MAX_NESTING} levels"
        )
    return values


def _is_shallow(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels >= 0 and all(_is_shallow(item, levels - 1) for item in inner)


def own_slots(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The user's own adaptive settings without our key, None where there are no slots."""
    slots = {key: value for key, value in values.items() if key != KEY}
    return slots if any(map(is_slot, slots)) else None


def slot_steps(slots: Mapping[str, Any]) -> tuple[int, ...]:
    """Union of the candidate steps of a user's slots."""
    steps: set[int] = set()
    for key, slot in slots.items():
        if not is_slot(key):
            continue
        candidates = slot.get("candidate_steps") if isinstance(slot, dict) else None
        if not isinstance(candidates, list) or not all(type(s) is int for s in candidates):
            raise ConfigError(
                f"candidate_steps of batch-size slot {key!r} is {candidates!r}, "
                "not a list of integers"
            )
        steps.update(candidates)
    return tuple(sorted(steps))


def read(path: str | None) -> SpecKVConfig | None:
    """The settings carried by ``path``; None where SpecKV was not asked for.

    A broken file is SGLang's to report unless it asks for SpecKV.
    """
    if path is None:
        return None
    values = load_json(path)
    if KEY not in values:
        return None
    asked = values[KEY]
    if not isinstance(asked, Mapping):
        raise ConfigError(f'the "{KEY}" key of {path!r} holds {asked!r}, not a JSON object')
    return SpecKVConfig.from_dict(with_slots(asked, own_slots(values)))


def asked_in(path: str | None) -> dict[str, Any]:
    """What a user's own file says before flags or keywords are laid over it; empty for None."""
    values = load_json(path) if path else {}
    return with_slots(values.get(KEY, {}), own_slots(values))


def with_slots(asked: Mapping[str, Any], slots: Mapping[str, Any] | None) -> dict[str, Any]:
    """``asked`` with what a user's own slots say where it says nothing itself."""
    if slots is None or "ema_config" in asked:
        return dict(asked)
    return {"candidate_steps": slot_steps(slots), "ema_config": dict(slots), **asked}


def _sizing_steps(config: SpecKVConfig, topk: int, launch: Shape | None) -> list[int]:
    """Candidate steps by which SGLang makes room for all tiers. For a chain of k it makes room for
    k + 1 tokens; a tree needs room for its verified tokens and for all that its drafting makes."""
    if config.candidate_shapes is None or launch is None:
        return list(config.candidate_steps)
    most = max(max(tokens, steps * topk) for steps, tokens in config.candidate_shapes)
    return sorted({launch.num_steps, most - 1})


def write(config: SpecKVConfig, topk: int = 1, launch: Shape | None = None) -> str:
    """Write the carrier file for ``config`` atomically and return its path. ``topk``, ``launch``:
    the children of a node and the launch shape, once they are known.

    A file of that name with other content (cut off, edited by hand) is replaced.
    """
    content = json.dumps(
        {"1": {"candidate_steps": _sizing_steps(config, topk, launch)}, KEY: config.to_dict()},
        indent=2,
        sort_keys=True,
    ).encode()
    cache = os.environ.get("SPECKV_CACHE") or Path.home() / ".cache" / "sglang-speckv"
    path = Path(cache) / "configs" / f"{hashlib.sha256(content).hexdigest()[:16]}.json"
    if not _holds(path, content):
        try:
            write_atomically(path, lambda scratch: scratch.write_bytes(content))
        except OSError as error:
            raise ConfigError(
                f"{str(path)!r} cannot be written ({error.strerror}); "
                "point SPECKV_CACHE at a writable folder"
            ) from error
    return str(path)


def _holds(path: Path, content: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(content) + 1) == content
    except OSError:
        return False
