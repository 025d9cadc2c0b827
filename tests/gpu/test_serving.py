"""Tiers captured, switched and paid for; the text is the target's; signals are the draft's own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from examples.gpu.observe import memory_of, tier_memory
from sglang_speckv.config import Shape
from sglang_speckv.offline.records import Record
from sglang_speckv.policy.prior import OFF
from sglang_speckv.srt.memory import MIB, PINNED_MIB, WRAPPER_MIB, tier_mib, wrappers
from tests import operators
from tests.engine.conftest import PROMPTS, Serving, serving
from tests.engine.test_signals import compare_with_transformers, doze, records_of, shuffle
from tests.exact.features import SHARED
from tests.gpu.conftest import (
    COMMAND,
    DTYPE,
    KINDS,
    LARGEST_GRAPH,
    PREFILL_TOKENS,
    REHEARSAL,
    SHORT,
    SIGNAL_TOLERANCE,
    STEPS,
    WHOLE,
    Kind,
    References,
    at_length,
    needs_device,
    on_gpu,
    server_flags,
)
from tests.gpu.conftest import on_kinds as on
from tests.rehearsal import inventory, serve

pytestmark = [*on_gpu, on(*KINDS)]
Pair = tuple[Kind, Serving]


@pytest.mark.parametrize("num_steps", (STEPS[0], STEPS[-1]) if SHORT else STEPS)
def test_a_fixed_depth_is_lossless(
    gpu_server: Pair, references: References, num_steps: int
) -> None:
    kind, server = gpu_server
    server.select(f"static:{num_steps}")
    before = server.speckv()["rounds"]
    assert references[kind.backend].losses(server.tokens(PROMPTS)) == []
    after = server.speckv()["rounds"]
    assert {step for step in after if after[step] > before[step]} == {str(num_steps)}


@pytest.mark.parametrize("policy", ["throughput"] if SHORT else ["throughput", "ema"])
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
        for _ in range(1 if SHORT else 3):
            assert references[kind.backend].losses(server.tokens(PROMPTS)) == []
    assert server.speckv()["switches"] > switches
    assert "Switch adaptive runtime state" not in server.log.read_text(errors="replace")


def test_long_prompts_and_cached_ones_are_lossless(
    gpu_server: Pair, references: References
) -> None:
    """Prefilled in chunks, and behind a prefix of the cache."""
    kind, server = gpu_server
    if SHORT and kind.pair != "eagle3":
        pytest.skip("make rehearse runs it")
    long = SHARED * (PREFILL_TOKENS // len(SHARED) + 1)
    prompts = [long + prompt for prompt in PROMPTS]
    server.flush_cache()
    with server.shuffled_depths([3, 0, 5, 1], every_s=0.005):
        assert references[kind.backend].losses(server.tokens([long]), [long]) == []
        answers = server.generate(prompts)
    assert min(answer["meta_info"]["cached_tokens"] for answer in answers) > PREFILL_TOKENS
    tokens = [answer["output_ids"] for answer in answers]
    assert references[kind.backend].losses(tokens, prompts) == []


@at_length
def test_graphs_captured_again_are_those_of_every_depth(
    gpu_server: Pair, references: References, models: dict[str, str]
) -> None:
    """After new weights, which may lie elsewhere. The tests below go on with these graphs."""
    kind, server = gpu_server
    own = server.tokens(PROMPTS)
    for name in ("alike", "target"):
        asked = {"model_path": models[name], "recapture_cuda_graph": True}
        assert server.post("/update_weights_from_disk", asked)["success"]
        for num_steps in STEPS:
            server.pin(num_steps)
            answers = server.tokens(PROMPTS)
            if name == "alike":
                assert answers != own
            else:
                assert references[kind.backend].losses(answers) == []
    server.pin(-1)
    assert server.speckv()["failures"] == {}


def test_signals_are_the_drafts_own(gpu_server: Pair, models: dict[str, str]) -> None:
    kind, server = gpu_server
    if SHORT and kind.pair != "standalone-self":
        pytest.skip("make rehearse runs it")
    answers = shuffle(server, each=5)
    header, records = records_of(server)
    assert header.dtype == DTYPE
    ours = [record for record in records if record.request in answers]
    assert {record.num_steps for record in ours} == set(STEPS)
    assert all(len(r.top1_prob) == r.num_steps for r in ours)
    assert all(0 < p <= 1 for r in ours for p in r.top1_prob)
    if kind.pair == "standalone-self":
        compare_with_transformers(ours, answers, models["target"], *SIGNAL_TOLERANCE)


@pytest.mark.skipif(not WHOLE, reason="compared with a server without tapes, by make rehearse")
def test_signals_of_graphs_are_those_without(
    gpu_server: Pair, models: dict[str, str], tmp_path: Path
) -> None:
    """At every depth and for every number of requests that is padded or is not."""
    kind, server = gpu_server
    args = server_flags(models, kind, tmp_path / "trace")
    with serving(tmp_path, *args, *serve.EAGER, command=COMMAND) as eager:
        eager.trace = tmp_path / "trace"
        theirs = signals_by_round(eager)
    ours = signals_by_round(server)
    assert ours.keys() == theirs.keys() and len(ours) > 10 * len(STEPS)
    for where, record in ours.items():
        assert record.num_correct_drafts == theirs[where].num_correct_drafts
        assert record.top1_prob == pytest.approx(theirs[where].top1_prob, abs=1e-3)
        assert record.entropy == pytest.approx(theirs[where].entropy, abs=1e-2)


def signals_by_round(server: Serving) -> dict[tuple[str, int], Record]:
    """Of one, two and more requests that begin together, at every depth: by request and round."""
    asked = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}
    first: dict[str, int] = {}
    for num_steps in STEPS:
        server.select(f"static:{num_steps}")
        for size in range(1, len(PROMPTS) + 1):
            rids = [f"{num_steps}-{size}-{n}" for n in range(size)]
            body = {"text": PROMPTS[:size], "rid": rids, "sampling_params": asked}
            server.post("/generate", body)
            first |= dict.fromkeys(rids, 0)
    found = [record for record in records_of(server)[1] if record.request in first]
    for record in found:
        first[record.request] = first[record.request] or record.round
    return {(record.request, record.round - first[record.request]): record for record in found}


def test_a_draft_that_slept_has_missed_nothing(gpu_server: Pair, models: dict[str, str]) -> None:
    kind, server = gpu_server
    if SHORT and not kind.sleeps:
        pytest.skip("make rehearse runs it")
    before = server.speckv()["draft_catch_ups"]
    answers = doze(server)
    woke = [r for r in records_of(server)[1] if r.request in answers and r.num_steps]
    caught_up = server.speckv()["draft_catch_ups"] - before
    assert server.speckv()["draft_sleeps"] == kind.sleeps
    assert caught_up >= 3 if kind.sleeps else caught_up == 0
    if kind.pair == "standalone-self":
        compare_with_transformers(woke, answers, models["target"], *SIGNAL_TOLERANCE)


def test_decoding_runs_in_graphs(gpu_server: Pair) -> None:
    kind, server = gpu_server
    if SHORT and kind.pair == "eagle3":
        pytest.skip("make rehearse runs it")
    for num_steps in STEPS:
        server.pin(num_steps)
        server.generate(PROMPTS, max_new_tokens=24)
    server.pin(-1)
    log = server.log.read_text(errors="replace").splitlines()
    sizes = [(re.search(r"Decode batch, #running-req: (\d+)", line), line) for line in log]
    decoding = [line for size, line in sizes if size and int(size[1]) <= LARGEST_GRAPH]
    assert len(decoding) > len(STEPS)
    assert [line for line in decoding if " graph: True" not in line] == []


@pytest.mark.skipif(not WHOLE, reason="counted with tapes, by make rehearse")
def test_speckv_adds_no_more_operators_than_stated(gpu_server: Pair) -> None:
    _, server = gpu_server
    for num_steps in STEPS:
        server.pin(num_steps)
        server.generate(PROMPTS, max_new_tokens=operators.EVERY * (num_steps + 2))
    server.pin(-1)
    found = operators.read(server.log.read_text(errors="replace"), len(PROMPTS))
    assert set(found) == set(STEPS)
    for num_steps, counts in found.items():
        steps = max(num_steps - 1, 0)  # one draft was made at the end of the round before
        assert 0 < counts.ours <= operators.most(num_steps, captured=True)
        assert counts.reductions <= 1
        assert counts.reductions_in_graphs == steps
        assert counts.decisions_in_graphs == (num_steps if steps else 0)
        assert (
            counts.in_graphs == counts.decisions_in_graphs
        )  # nodes, and one forgets what was said


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


@pytest.mark.skipif(not REHEARSAL, reason="the device's allocator is asked instead")
def test_every_further_depth_holds_what_is_reserved(
    gpu_server: Pair, models: dict[str, str]
) -> None:
    kind, server = gpu_server
    if kind.backend != "flashinfer":
        pytest.skip("only FlashInfer's buffers are counted")
    config = json.loads((Path(models["target"]) / "config.json").read_text())
    found = inventory.read(server.log.read_text(errors="replace"))
    assert set(found) == set(STEPS) - {server.speckv()["launch_steps"]}
    for steps, stock in found.items():
        count = wrappers("flashinfer", steps, serve.GRAPH_SIZES)
        length = config["max_position_embeddings"]
        shape, sizes = Shape(steps, steps + 1), serve.GRAPH_SIZES
        reserved = tier_mib("flashinfer", shape, 1, sizes, length, serve.WORKSPACE_MIB)
        least = reserved - (WRAPPER_MIB - PINNED_MIB) * count  # without what the allocator adds
        assert stock.wrappers == count
        assert stock.pinned == PINNED_MIB * MIB * count
        # ... which has room for 128 KiB of lengths that a prefill wrapper holds besides.
        assert least <= stock.device / MIB <= least + count / 8


def test_the_profile_has_every_depth(gpu_server: Pair) -> None:
    kind, server = gpu_server
    shown = server.speckv()
    asleep = {OFF} if kind.sleeps else set()
    assert {steps for size, steps, _ in shown["profile"] if size == 1} == set(STEPS) | asleep
    assert shown["signal_lag"]["mode"] == "auto"
