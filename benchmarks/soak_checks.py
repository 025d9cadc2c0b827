"""What a soak checks: counts that add up, answers that are the target's, memory that stays."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families
from scipy import stats

from benchmarks.soak_requests import Answer, Asked, Mix, together
from sglang_speckv.ab.client import Client, ServerError

AUDITED = 6
"""Requests whose own counts are compared with the server's, after each cycle."""
TIE = 1e-3
WARM_UP = 0.2
"""Of the cycles: in these buffers and heaps grow to their size."""
MOST_ERRORS = 50
MOST_DIFFERING = 5
COUNTS = (
    *("request_rounds", "drafted_tokens", "proposed_drafts", "cut_drafts", "correct_drafts"),
    *("decisions", "switches", "draft_catch_ups", "fallbacks", "odd_signals", "odd_times"),
)


@dataclass
class Soak:
    """What was found so far."""

    server: Client
    alone: Client
    """The target without speculation."""
    processes: list[psutil.Process]
    errors: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    memory: list[tuple[float, dict[str, float]]] = field(default_factory=list)
    """After each cycle: hours since the start, MB of every process by name."""
    differing: list[dict[str, Any]] = field(default_factory=list)
    """The first requests whose answers are not the target's, and both answers."""
    shown: dict[str, Any] = field(default_factory=dict)
    """The server's own counts after the newest audit."""
    stock: bool = False
    """The server is SGLang without SpecKV."""
    exact: bool = False
    """Whether the server has the exact lane, so that its requests can be compared too."""

    def wrong(self, what: str) -> None:
        self.counts["errors"] += 1
        if len(self.errors) < MOST_ERRORS:
            self.errors.append(what)

    def differs(self, what: str, evidence: dict[str, Any]) -> None:
        self.wrong(what)
        if len(self.differing) < MOST_DIFFERING:
            self.differing.append(evidence)


async def set_state(run: Soak, key: str, value: int) -> None:
    run.counts["commands"] += 1
    try:
        await run.server.set_state(key, value, f"{key}={value}")
    except ServerError as error:
        run.wrong(str(error))


async def speckv(client: Client) -> dict[str, Any]:
    found: dict[str, Any] = (await client.internal_state())["speckv"]
    return found


async def audit(run: Soak, mix: Mix) -> None:
    """Nothing else is running: what the server counts is what these requests say of themselves."""
    await quiet(run)
    await set_state(run, "speckv_policy:throughput", 1)
    asked: list[Asked] = []
    while len(asked) < AUDITED:
        drawn = mix.draw()
        if not drawn.gives_up and drawn.kind != "exact":
            asked.append(drawn)
    await settle(run)
    before = await speckv(run.server)
    answers = await together(run.server, asked, AUDITED)
    await quiet(run)
    await settle(run)
    after = await speckv(run.server)
    run.kinds.update(answer.asked.kind for answer in answers)
    for answer in answers:
        if answer.error:
            run.wrong(answer.error)
    for ours, theirs, settling in (
        ("request_rounds", "spec_verify_ct", 1),
        ("correct_drafts", "spec_num_correct_drafts", 0),
        ("proposed_drafts", "spec_num_proposed_drafts", 0),
    ):
        counted = after[ours] - before[ours] - settling
        told = sum(answer.meta.get(theirs, 0) for answer in answers)
        if counted != told:
            run.wrong(f"{ours} grew by {counted}, the requests' {theirs} are {told}")
    run.counts["audits"] += 1
    run.shown = {name: after[name] for name in (*COUNTS, "rounds", "failures", "alive")}
    for problem in contradictions(after) + await told_otherwise(run.server, after):
        run.wrong(problem)


async def settle(run: Soak) -> None:
    """One round without drafts: between ranks a round counts once the next one is launched."""
    await set_state(run, "speckv_num_steps", 0)
    await run.server.generate([2, 3], 2)
    await set_state(run, "speckv_num_steps", -1)


async def quiet(run: Soak) -> None:
    """Until no request runs: those that were given up end a little later."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        loads = json.loads(await run.server.call("GET", "/v1/loads"))["loads"]
        if not sum(load["num_running_reqs"] + load["num_waiting_reqs"] for load in loads):
            return
        await asyncio.sleep(0.1)
    run.wrong("requests ran on for a minute after their clients had left")


def contradictions(shown: dict[str, Any]) -> list[str]:
    """In what the counters do not add up."""
    correct, proposed, cut = (shown[f"{name}_drafts"] for name in ("correct", "proposed", "cut"))
    problems = {
        "more drafts are correct than were proposed": correct > proposed,
        "drafts proposed and cut are not those that were made": (
            proposed + cut != shown["drafted_tokens"]
        ),
        "the launch depth is held": shown["held"],
        f"failures: {shown['failures']}": shown["failures"],
        f"fallbacks: {shown['fallbacks']}": shown["fallbacks"],
        f"odd signals: {shown.get('odd_signals')}": shown.get("odd_signals"),
        f"odd times: {shown.get('odd_times')}": shown.get("odd_times"),
    }
    return [problem for problem, holds in problems.items() if holds]


async def told_otherwise(client: Client, shown: dict[str, Any]) -> list[str]:
    """Where the metrics page, which follows within a second, says something else."""
    wanted = {
        "correct_drafts_total": shown["correct_drafts"],
        "drafted_tokens_total": shown["drafted_tokens"],
        "cut_drafts_total": shown["cut_drafts"],
        "rounds_total": sum(shown["rounds"].values()),
    }
    for _ in range(50):
        page = (await client.call("GET", "/metrics")).decode()
        told: Counter[str] = Counter()
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                name = sample.name.removeprefix("speckv:")
                told[name] += int(sample.value) if name in wanted else 0
        other = {name: told[name] for name, value in wanted.items() if told[name] != value}
        if not other:
            return []
        await asyncio.sleep(0.1)
    return [f"the metrics page has {other}, /server_info {wanted}"]


async def compare(run: Soak, answer: Answer) -> None:
    """With the target alone."""
    asked = answer.asked
    if asked.kind == "exact" and not run.exact:
        return
    body = {**asked.body, "stream": False, "rid": f"{asked.rid}:alone"}
    theirs = (await generate(run.alone, body))["output_ids"]
    run.counts["compared"] += 1
    run.counts["exact_compared"] += asked.kind == "exact"
    ours = answer.output_ids
    if ours == theirs:
        return
    at = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
        min(len(ours), len(theirs)),
    )
    differs = f"{asked.kind} {asked.body['sampling_params']}: token {at} of {len(theirs)} differs"
    evidence = {"body": asked.body, "ours": ours, "theirs": theirs}
    if asked.kind == "exact":  # the log-probabilities do not say how close it was
        run.differs(differs, evidence)
        return
    body["input_ids"] = [*asked.body["input_ids"], *theirs[:at]]
    body |= {"rid": f"{asked.rid}:tie", "return_logprob": True, "top_logprobs_num": 2}
    body["sampling_params"] = {"temperature": 0, "max_new_tokens": 1, "ignore_eos": True}
    told = await generate(run.alone, body)
    (best, *_), (second, *_) = told["meta_info"]["output_top_logprobs"][0]
    if at < min(len(ours), len(theirs)) and best - second < TIE:
        run.counts["ties"] += 1
    else:
        run.differs(f"{differs}, the two best are {best - second:.3g} apart", evidence)


async def generate(client: Client, body: dict[str, Any]) -> Any:
    return json.loads(await client.call("POST", "/generate", body))


def own_megabytes(processes: Sequence[psutil.Process]) -> dict[str, float]:
    """Resident and not shared with a file or another process, of each of them by name."""
    found: dict[str, float] = {}
    for process in processes:
        name, info = process.name(), process.memory_info()
        found[name] = found.get(name, 0.0) + (info.rss - info.shared) / 1e6
    return found


def slope(memory: Sequence[tuple[float, float]]) -> dict[str, Any] | None:
    """MB per hour with a 95 % interval, over the cycles behind the warm-up; None for fewer than
    four. ``memory``: hours and MB of each cycle."""
    kept = np.array(memory[round(WARM_UP * len(memory)) :])
    if len(kept) < 4:
        return None
    fit = stats.linregress(kept[:, 0], kept[:, 1])
    half = float(stats.t.ppf(0.975, len(kept) - 2) * fit.stderr)
    value = float(fit.slope)
    return {
        "value": round(value, 2),
        "interval": [round(value - half, 2), round(value + half, 2)],
        "cycles": len(kept),
    }
