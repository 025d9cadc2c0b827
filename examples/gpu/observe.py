"""What servers, logs and traces tell, and how the GPU scripts write it down."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from sglang_speckv.ab.client import Client, ServerError
from sglang_speckv.config import ConfigError
from sglang_speckv.files import write_json
from sglang_speckv.offline.records import Record
from sglang_speckv.provenance import provenance

_TIER = re.compile(r"Built adaptive runtime state steps=(\d+): elapsed=([\d.]+)s, mem=(-?[\d.]+)GB")
Target = Annotated[str | None, typer.Option(help="[default: the demo's]")]
ServerFlags = Annotated[
    list[str] | None, typer.Option(help="One more flag for the server; repeatable.")
]
OutFile = Annotated[Path | None, typer.Option(help="Result file.")]
TEXT_DIGITS = 1e-5
"""Traces round probabilities to this."""


def tier_memory(log: str) -> dict[int, float]:
    """GB of device memory that each tier beyond the launch depth took, by SGLang's own log."""
    return {int(steps): float(gb) for steps, _, gb in _TIER.findall(log)}


def signal_ages(records: Sequence[Record]) -> Counter[str]:
    """Which round's first-token signal each decision saw: ``coming`` (lag 0), ``before`` (lag 1),
    ``either`` where the two are the same number, ``neither``, or ``none``.

    Compares ``first_prob`` with ``top1_prob[0]`` of the same and of the request's last round.
    """
    ages: Counter[str] = Counter()
    by_request: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.round):
        by_request.setdefault(record.request, []).append(record)
    for rounds in by_request.values():
        for last, record in pairwise(rounds):
            if record.num_steps and last.num_steps:
                ages[_age(record.first_prob, last, record)] += 1
    return ages


def _age(seen: float | None, last: Record, record: Record) -> str:
    if seen is None:
        return "none"
    coming, before = (abs(seen - r.top1_prob[0]) < TEXT_DIGITS / 2 for r in (record, last))
    if coming and before:
        return "either"
    return "coming" if coming else "before" if before else "neither"


def as_told(ages: Counter[str], rounds: int) -> bool:
    """Whether decisions saw the signals of the round that ``internal_states[].speckv.signal_lag``
    tells, 0 or 1 behind, none an older one. A prefill between two rounds lets a result arrive in
    time, so a few may see a fresher one."""
    if not ages or ages["neither"]:
        return False
    return ages["coming"] < ages["before"] if rounds else ages["before"] == 0


async def pin(client: Client, num_steps: int) -> None:
    """Hold a depth; -1 lets the policy choose again."""
    await client.set_state("speckv_num_steps", num_steps, f"the depth {num_steps}")


async def keep_awake(client: Client, on: bool) -> None:
    """Whether a STANDALONE draft reads along at depth 0 too."""
    await client.set_state("speckv_keep_awake", int(on), "to keep its draft awake")


def memory_of(state: dict[str, Any]) -> dict[str, Any]:
    """GB of weights, KV cache and graphs, from an internal state."""
    usage = state.get("memory_usage") or {}
    return {key: usage.get(key) for key in ("weight", "kvcache", "token_capacity", "graph")}


def machine() -> dict[str, Any]:
    """Provenance, and what figures of a GPU depend on besides."""
    cuda = torch.cuda.is_available()
    return {
        **provenance(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cuda": torch.version.cuda if cuda else None,
        "triton": _version("triton"),
    }


def finish(result: dict[str, Any], out: Path | None) -> None:
    """Write ``result`` and print it as one line."""
    if out is not None:
        write_json(out, result)
    print(json.dumps(result))


def log_path(out: Path | None, name: str, scratch: Path) -> Path:
    """Of a server's log: kept beside the result file, else gone with ``scratch``."""
    return scratch / f"{name}.log" if out is None else out.with_suffix(f".{name}.log")


def run(app: Callable[[], object], name: str) -> None:
    """A script's edge: what a user did wrong is one sentence and exit code 2."""
    try:
        app()
    except ConfigError as error:
        print(f"{name}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except ServerError as error:
        print(f"{name}: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
