"""Tiers captured, switched and paid for; the text is the target's; signals are the draft's own."""

from __future__ import annotations

from typing import Any

import pytest

from examples.gpu.observe import memory_of, tier_memory
from sglang_speckv.policy.prior import OFF
from tests.engine.conftest import PROMPTS, Serving
from tests.engine.test_signals import compare_with_transformers, doze, records_of, shuffle
from tests.gpu.conftest import (
    DTYPE,
    KINDS,
    STEPS,
    Kind,
    References,
    needs_device,
    on_gpu,
)
from tests.gpu.conftest import on_kinds as on

pytestmark = [*on_gpu, on(*KINDS)]
Pair = tuple[Kind, Serving]
SIGNAL_TOLERANCE = {"float32": (5e-3, 5e-2, True), "bfloat16": (5e-2, 0.3, False)}[DTYPE]
"""Of a probability and of an entropy in nats, against Transformers in float32; and whether past a
rejected draft as well."""


@pytest.mark.parametrize("num_steps", STEPS)
def test_a_fixed_depth_is_lossless(
    gpu_server: Pair, references: References, num_steps: int
) -> None:
    kind, server = gpu_server
    server.select(f"static:{num_steps}")
    before = server.speckv()["rounds"]
    assert references[kind.backend].losses(server.tokens(PROMPTS)) == []
    after = server.speckv()["rounds"]
    assert {step for step in after if after[step] > before[step]} == {str(num_steps)}


@pytest.mark.parametrize("policy", ["throughput", "ema"])
def test_policies_are_lossless(gpu_server: Pair, references: References, policy: str) -> None:
    kind, server = gpu_server
    server.select(policy)
    assert references[kind.backend].losses(server.tokens(PROMPTS)) == []
    shown = server.speckv()
    assert (shown["active"], shown["policy"], shown["fallbacks"]) == (True, policy, 0)


def test_moving_depth_is_lossless(gpu_server: Pair, references: References) -> None:
    kind, server = gpu_server
    switches = server.speckv()["switches"]
    with server.shuffled_depths([5, 0, 3, 1], every_s=0.005):
        for _ in range(3):
            assert references[kind.backend].losses(server.tokens(PROMPTS)) == []
    assert server.speckv()["switches"] > switches
    assert "Switch adaptive runtime state" not in server.log.read_text(errors="replace")


def test_signals_are_the_drafts_own(gpu_server: Pair, models: dict[str, str]) -> None:
    kind, server = gpu_server
    answers = shuffle(server, each=5)
    header, records = records_of(server)
    assert header.dtype == DTYPE
    ours = [record for record in records if record.request in answers]
    assert {record.num_steps for record in ours} == set(STEPS)
    assert all(len(r.top1_prob) == r.num_steps for r in ours)
    assert all(0 < p <= 1 for r in ours for p in r.top1_prob)
    if kind.pair == "standalone-self":
        compare_with_transformers(ours, answers, models["target"], *SIGNAL_TOLERANCE)


def test_a_draft_that_slept_has_missed_nothing(gpu_server: Pair, models: dict[str, str]) -> None:
    kind, server = gpu_server
    before = server.speckv()["draft_catch_ups"]
    answers = doze(server)
    woke = [r for r in records_of(server)[1] if r.request in answers and r.num_steps]
    caught_up = server.speckv()["draft_catch_ups"] - before
    assert server.speckv()["draft_sleeps"] == kind.sleeps
    assert caught_up >= 3 if kind.sleeps else caught_up == 0
    if kind.pair == "standalone-self":
        compare_with_transformers(woke, answers, models["target"], *SIGNAL_TOLERANCE)


@needs_device
def test_decoding_runs_in_graphs(gpu_server: Pair) -> None:
    _, server = gpu_server
    for num_steps in STEPS:
        server.pin(num_steps)
        server.generate(PROMPTS, max_new_tokens=24)
    server.pin(-1)
    log = server.log.read_text(errors="replace").splitlines()
    decoding = [line for line in log if "Decode batch" in line]
    assert decoding
    assert [line for line in decoding if "cuda graph: True" not in line] == []


@needs_device
def test_memory_of_every_tier_is_told(gpu_server: Pair, record_property: Any) -> None:
    kind, server = gpu_server
    memory = tier_memory(server.log.read_text(errors="replace"))
    launch = server.speckv()["launch_steps"]
    assert set(memory) == set(STEPS) - {launch}
    record_property(f"{kind} tier_memory_gb", memory)
    usage = memory_of(server.state())
    record_property(f"{kind} memory_gb", usage)
    assert sum(usage["graph"].values()) > 0, "no graph memory in /server_info"


def test_the_profile_has_every_depth(gpu_server: Pair) -> None:
    kind, server = gpu_server
    shown = server.speckv()
    asleep = {OFF} if kind.sleeps else set()
    assert {steps for size, steps, _ in shown["profile"] if size == 1} == set(STEPS) | asleep
    assert shown["signal_lag"]["mode"] == "auto"
