"""All arms of some drafts against each other on live servers."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from sglang_speckv.bench import sampling
from sglang_speckv.bench.arms import NO_DRAFT, Arm, Draft, ServerSpec, servers_for
from sglang_speckv.bench.client import Client
from sglang_speckv.bench.connection import ServerError
from sglang_speckv.bench.counters import Reliability
from sglang_speckv.bench.fleet import Fleet, ServerFacts, fleet_of
from sglang_speckv.bench.lossless import GapMeter, Verdict, judge
from sglang_speckv.bench.options import Options
from sglang_speckv.bench.pace import tokens_per_request
from sglang_speckv.bench.progress import Screen
from sglang_speckv.bench.results import BlockResult, Results
from sglang_speckv.bench.run import Runner, Tokenize
from sglang_speckv.bench.traffic import Condition, Workload

_CLOSING_S = 8.0  # judging the answers, the report, ending the servers
_DEFAULT_TOKENS = 64


@dataclass(frozen=True)
class Comparison:
    """What to compare. ``options.minutes`` bounds all of it, the servers' start included;
    ``planned_rounds`` are the blocks per cell that the output length should leave time for."""

    options: Options
    target: str
    drafts: Sequence[Draft]
    arms: Sequence[Arm]
    workload: Workload
    tokenize: Tokenize
    server_flags: Sequence[str]
    dtype: str
    server_bytes: int
    planned_rounds: int

    @property
    def traffic(self) -> list[list[Condition]]:
        rates = self.options.rate
        return [self.workload.conditions(kind, rates) for kind in self.options.traffic]

    @property
    def logs(self) -> Path:
        return Path(self.options.out) / "logs"


@dataclass
class Outcome:
    """Filled while it runs, so that what an interrupted run measured is there.

    ``max_new_tokens`` is the output length of every request, 0 until it is settled. ``failures``
    are servers that are out and why, ``p_values`` of a sampled arm's answers being the target's.
    """

    results: Results = field(default_factory=Results)
    verdicts: dict[tuple[Arm, Condition], Verdict] = field(default_factory=dict)
    samples: dict[Arm, sampling.Samples] = field(default_factory=dict)
    reliability: dict[Arm, Reliability] = field(default_factory=dict)
    max_new_tokens: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    facts: dict[str, ServerFacts] = field(default_factory=dict)
    ready_s: float = 0.0
    interrupted: bool = False
    keep: Callable[[Arm, BlockResult], None] = lambda arm, result: None
    settled: Callable[[int], None] = lambda max_new_tokens: None

    @property
    def p_values(self) -> dict[Arm, float]:
        return {
            arm: sampling.p_value(samples, reference)
            for none, reference in self.samples.items()
            for arm, samples in self.samples.items()
            if none.name == "none" != arm.base and none.draft in (NO_DRAFT, arm.draft)
        }


async def compare(wanted: Comparison, outcome: Outcome, screen: Screen) -> None:
    """Run it; servers end with it, also when it is interrupted or terminated."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    deadline = time.perf_counter() + wanted.options.seconds - _CLOSING_S
    arms_left = len(wanted.arms)
    for group in server_groups(wanted, screen):
        names = {spec.name for spec in group}
        arms = [arm for arm in wanted.arms if arm.server in names]
        share, arms_left = len(arms) / arms_left, arms_left - len(arms)
        until = time.perf_counter() + share * (deadline - time.perf_counter())
        await _run_group(wanted, group, arms, until, outcome, screen)


def server_groups(wanted: Comparison, screen: Screen) -> list[list[ServerSpec]]:
    """Servers that are up together: all of a draft's, unless memory is short even for those."""
    drafts = dict.fromkeys(arm.draft for arm in wanted.arms)
    together = any(arm.draft == NO_DRAFT for arm in wanted.arms) or not drafts
    groups = []
    for names in [list(drafts)] if together else [[draft] for draft in drafts]:
        arms = [arm for arm in wanted.arms if arm.draft in names]
        groups += _fitting(servers_for(wanted.drafts, arms), wanted.server_bytes, screen)
    return groups


def fit_together(specs: Sequence[ServerSpec], server_bytes: int) -> bool:
    """Whether there is memory for all of them; what runs elsewhere needs none."""
    needed = sum(spec.url is None for spec in specs) * server_bytes
    return psutil.virtual_memory().available >= needed


def _fitting(specs: list[ServerSpec], server_bytes: int, screen: Screen) -> list[list[ServerSpec]]:
    if fit_together(specs, server_bytes):
        return [specs]
    screen.say(
        f"{len(specs)} servers run one after another (not enough memory, or on a GPU), so noise "
        "over time cancels only within a server; together: true in the file has all up at once"
    )
    # the one without drafting comes last: the others' answers are judged while it is up
    return [[spec] for spec in sorted(specs, key=lambda spec: spec.name.endswith("none"))]


async def _run_group(
    wanted: Comparison,
    group: Sequence[ServerSpec],
    arms: Sequence[Arm],
    until: float,
    outcome: Outcome,
    screen: Screen,
) -> None:
    options = wanted.options
    flags = ("--model-path", wanted.target, *wanted.server_flags, *options.server_flags)
    started = time.perf_counter()
    with screen.status(f"starting {len(group)} SGLang server(s)") as report:
        async with fleet_of(group, flags, wanted.logs, options.timeout_s) as fleet:
            outcome.ready_s += time.perf_counter() - started
            known = [facts.settings for facts in outcome.facts.values() if facts.settings]
            await fleet.prove(arms, next(iter(known), None))
            outcome.facts |= fleet.facts
            _tell(fleet, outcome, screen)
            try:
                await _measure(wanted, fleet, arms, until, outcome, report)
            finally:
                fleet.note_memory()
                _tell(fleet, outcome, screen)
            if options.temperature == 0:
                report("comparing the answers")
                await _judge(wanted, fleet, outcome)
                _tell(fleet, outcome, screen)


async def _measure(
    wanted: Comparison,
    fleet: Fleet,
    arms: Sequence[Arm],
    until: float,
    outcome: Outcome,
    report: Callable[[str], None],
) -> None:
    options = wanted.options
    runner = Runner(
        fleet=fleet,
        arms=arms,
        workload=wanted.workload,
        traffic=wanted.traffic,
        tokenize=wanted.tokenize,
        report=report,
        temperature=options.temperature,
        spare=options.minutes is not None and options.spare,
        keep=outcome.keep,
        reliability=outcome.reliability,
    )
    pace = await runner.warm_up()
    if not outcome.max_new_tokens:
        left = until - time.perf_counter()
        planned = tokens_per_request(pace, left, wanted.planned_rounds, options.token_bounds)
        default = _DEFAULT_TOKENS if options.minutes is None else planned
        outcome.max_new_tokens = options.max_new_tokens or default
        outcome.settled(outcome.max_new_tokens)
    await runner.measure(outcome.results, outcome.max_new_tokens, until, options.most_rounds)
    if options.temperature > 0:
        for arm in runner.up:
            report(f"repeated prompts: {arm.name}")
            outcome.samples |= await runner.repeated(arm, max(options.concurrency))


def _tell(fleet: Fleet, outcome: Outcome, screen: Screen) -> None:
    for name, reason in fleet.failures.items():
        if name not in outcome.failures:
            screen.say(f"out of the comparison: {reason}")
    outcome.failures |= fleet.failures


async def _judge(wanted: Comparison, fleet: Fleet, outcome: Outcome) -> None:
    """Answers of every arm that has any against those of its ``none``, if that is up."""
    for none in wanted.arms:
        client = fleet.clients.get(none.server)
        if none.name != "none" or not isinstance(client, Client):
            continue
        meter = GapMeter(client, wanted.tokenize)
        ours = [a for a in wanted.arms if none.draft in (NO_DRAFT, a.draft) and a.base != "none"]
        for arm in ours:
            for condition in outcome.results.conditions():
                pair = outcome.results.common([none, arm], condition)
                if pair[arm] and not arm.name.startswith("url:"):
                    try:
                        verdict = await judge(pair[arm], pair[none], meter)
                    except ServerError as error:
                        return fleet.fail(none.server, error)
                    outcome.verdicts[arm, condition] = verdict
