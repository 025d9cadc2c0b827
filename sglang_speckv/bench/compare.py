"""All arms of some drafts against each other on live servers."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from sglang_speckv.bench.client import Client, ServerError
from sglang_speckv.bench.counters import read_counters
from sglang_speckv.bench.lossless import GapMeter, Verdict, judge
from sglang_speckv.bench.plan import Arm, Draft, ServerSpec, arms_for, servers_for
from sglang_speckv.bench.progress import Screen
from sglang_speckv.bench.prompts import Prompt
from sglang_speckv.bench.run import BlockResult, Results, Runner, Tokenize, tokens_per_request
from sglang_speckv.bench.server import Server, running

_READY_TIMEOUT_S = 600.0
_CLOSING_S = 8.0  # judging the answers, the report, ending the servers


@dataclass(frozen=True)
class Comparison:
    """What to compare. ``seconds`` bounds all of it, the servers' start included."""

    target: str
    drafts: Sequence[Draft]
    concurrencies: Sequence[int]
    prompts: Sequence[Prompt]
    tokenize: Tokenize
    server_flags: Sequence[str]
    seconds: float
    rounds: int
    token_bounds: tuple[int, int]
    server_bytes: int
    logs: Path


@dataclass
class Outcome:
    """``max_new_tokens`` is the output length of every request."""

    results: Results = field(default_factory=Results)
    verdicts: dict[tuple[Arm, int], Verdict] = field(default_factory=dict)
    max_new_tokens: int = 0
    max_running_requests: int | None = None
    ready_s: float = 0.0


async def compare(wanted: Comparison, screen: Screen) -> Outcome:
    """Run it; servers end with it, also when it is interrupted or terminated."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    deadline = time.perf_counter() + wanted.seconds - _CLOSING_S
    arms_left = len(arms_for(wanted.drafts))
    outcome = Outcome()
    for group in server_groups(wanted, screen):
        names = {spec.name for spec in group}
        arms = [arm for arm in arms_for(wanted.drafts) if arm.server in names]
        share, arms_left = len(arms) / arms_left, arms_left - len(arms)
        until = time.perf_counter() + share * (deadline - time.perf_counter())
        await _run_group(wanted, group, arms, until, outcome, screen)
    return outcome


def server_groups(wanted: Comparison, screen: Screen) -> list[list[ServerSpec]]:
    """Servers that are up together: all, or one at a time where memory is short."""
    specs = servers_for(wanted.drafts)
    available = psutil.virtual_memory().available
    needed = len(specs) * wanted.server_bytes
    if available >= needed:
        return [specs]
    screen.say(
        f"{len(specs)} servers at once need about {needed / 1e9:.0f} GB and {available / 1e9:.0f} "
        "GB are free: running one after another, so noise over time does not cancel"
    )
    # the one without drafting comes last: the others' answers are judged while it is up
    return [[spec] for spec in (*specs[1:], specs[0])]


async def _run_group(
    wanted: Comparison,
    group: Sequence[ServerSpec],
    arms: Sequence[Arm],
    until: float,
    outcome: Outcome,
    screen: Screen,
) -> None:
    flags = ("--model-path", wanted.target, *wanted.server_flags)
    servers = [
        Server(spec.name, (*flags, *spec.flags), wanted.logs / f"{spec.name}.log") for spec in group
    ]
    started = time.perf_counter()
    with screen.status(f"starting {len(servers)} SGLang server(s)") as report:
        async with running(servers, _READY_TIMEOUT_S) as clients:
            outcome.ready_s += time.perf_counter() - started
            arms = await _checked_arms(clients, arms, outcome, screen)
            runner = Runner(
                clients, arms, wanted.concurrencies, wanted.prompts, wanted.tokenize, report
            )
            warm_up_s = await runner.warm_up()
            if not outcome.max_new_tokens:
                outcome.max_new_tokens = tokens_per_request(
                    warm_up_s, until - time.perf_counter(), wanted.rounds, wanted.token_bounds
                )
            await runner.measure(outcome.results, outcome.max_new_tokens, until)
            if "none" in clients:
                report("comparing the answers")
                meter = GapMeter(clients["none"], wanted.tokenize)
                outcome.verdicts = await _judge(wanted, outcome.results, meter)


async def _checked_arms(
    clients: Mapping[str, Client], arms: Sequence[Arm], outcome: Outcome, screen: Screen
) -> list[Arm]:
    """Arms that are what they claim: SpecKV active where it should be, and equal limits."""
    inactive = set()
    for name, client in clients.items():
        state = await client.internal_state()
        _check_limit(name, state, outcome)
        if name.endswith("-speckv") and read_counters(state, name) is None:
            inactive.add(name)
            screen.say(f"server {name}: SpecKV is not active, so its arms are not reported")
    return [arm for arm in arms if arm.server not in inactive]


def _check_limit(name: str, state: Mapping[str, Any], outcome: Outcome) -> None:
    limit = state.get("effective_max_running_requests_per_dp")
    if outcome.max_running_requests is None:
        outcome.max_running_requests = limit
    if limit != outcome.max_running_requests:
        raise ServerError(
            f"server {name} runs at most {limit} requests where another runs "
            f"{outcome.max_running_requests}: the comparison would not be fair"
        )


async def _judge(
    wanted: Comparison, results: Results, meter: GapMeter
) -> dict[tuple[Arm, int], Verdict]:
    verdicts: dict[tuple[Arm, int], Verdict] = {}
    none, *drafting = arms_for(wanted.drafts)
    for arm in drafting:
        for concurrency in wanted.concurrencies:
            pair: dict[Arm, list[BlockResult]] = results.common([none, arm], concurrency)
            if pair[arm]:
                verdicts[arm, concurrency] = await judge(pair[arm], pair[none], meter)
    return verdicts
