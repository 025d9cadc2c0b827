"""What the tap reports is what the draft says: every record of a trace of real rounds against the
draft's own distribution, computed by Transformers from the text alone."""

import json
import re
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import groupby, pairwise

import numpy as np
import pytest
import requests
import torch
from prometheus_client.parser import text_string_to_metric_families
from scipy import special, stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from sglang_speckv.offline.records import Header, Record, read_trace, trace_files
from sglang_speckv.policy.prior import OFF
from sglang_speckv.srt.sleep import WINDOW
from tests.engine.conftest import PAIRS, PROMPTS, STEPS, TOKENS, Serving, on_pairs

pytestmark = [pytest.mark.engine, on_pairs("eagle3", "standalone-self")]
DEPTHS = [3, 0, 5, 1]
LASTING_TOKENS = 1900
"""Nearly the models' context, which nothing here comes to the end of."""


def records_of(server: Serving) -> tuple[Header, list[Record]]:
    """Everything written so far, once it is flushed."""
    expected = server.speckv()["trace"]["records"]
    deadline = time.monotonic() + 20
    while True:
        header, records = read_trace(trace_files(server.trace)[0])
        found = list(records)
        if len(found) >= expected > 0 or time.monotonic() > deadline:
            return header, found
        time.sleep(0.1)


@contextmanager
def churn(server: Serving, each: int) -> Iterator[dict[str, list[int]]]:
    """Requests of different lengths that enter and leave beside one that lasts as long as the block
    that moves the depth, however slow this machine is; their greedy answers when it ends.

    Nothing may come from the prefix cache. Without a head SGLang files prefixes under their own
    tokens, though the draft's KV of the last one holds the token that came next; so a request with
    the prompt of another one that went on differently takes over a wrong entry.
    """
    server.flush_cache()
    turn = time.monotonic_ns()  # no request has the name of an earlier one
    rids = [f"class{n % 2}:{n % len(PROMPTS)}:{turn}-{n}" for n in range(6)]
    lasting, *passing = rids

    def ask(rid: str) -> list[int]:
        number = rids.index(rid)
        time.sleep(0.05 * number)
        body = {
            "text": PROMPTS[number % len(PROMPTS)],
            "rid": rid,
            "sampling_params": {
                "temperature": 0,
                "max_new_tokens": 8 + each * number if rid in passing else LASTING_TOKENS,
                "ignore_eos": True,
            },
        }
        return server.post("/generate", body)["output_ids"]

    answers: dict[str, list[int]] = {}
    with ThreadPoolExecutor(len(rids)) as pool:
        asked = {rid: pool.submit(ask, rid) for rid in rids}
        yield answers
        for rid in passing:
            asked[rid].result()
        server.command("/abort_request", {"rid": lasting})
        answers |= {rid: task.result() for rid, task in asked.items()}


def move(server: Serving, stages: Sequence[tuple[int, int]]) -> None:
    """Pin each depth in turn for that many rounds at least; the last one stays."""
    for num_steps, rounds in stages:
        server.pin(num_steps)
        deadline, expected = time.monotonic() + 60, server.rounds() + rounds
        while server.rounds() < expected:
            assert time.monotonic() < deadline
            time.sleep(0.03)  # to ask takes the server as long


def test_signals_are_the_drafts_own(server: Serving, models: dict[str, str]) -> None:
    algorithm, draft = PAIRS[server.pair]
    answers = shuffle(server, each=5)
    header, records = records_of(server)
    assert header.algorithm == algorithm
    assert (header.dtype, header.overlap, header.candidate_steps) == (
        "float32",
        False,
        (0, 1, 3, 5),
    )
    ours = [r for r in records if r.request in answers]
    assert {r.num_steps for r in ours} == set(DEPTHS)
    assert max(r.batch_size for r in ours) > 1
    for r in ours:
        assert len(r.top1_prob) == len(r.entropy) == r.num_steps
        assert all(0 < p <= 1 for p in r.top1_prob)
        if r.num_steps and r.first_prob is not None:  # lag 0: the decision saw the coming round's
            assert r.first_prob == r.top1_prob[0]
    ordered = sorted(ours, key=lambda r: (r.request, r.round))
    for last, r in pairwise(ordered):
        slept = algorithm == "STANDALONE" and last.request == r.request and last.num_steps == 0
        assert (r.first_prob is None) == slept
    assert ordered[0].first_prob is not None
    for rid, answer in answers.items():
        mine = [r for r in ours if r.request == rid]
        assert sum(r.num_correct_drafts + 1 for r in mine) >= len(answer) - 1
    if algorithm == "STANDALONE":
        compare_with_transformers(ours, answers, models[draft])


def test_a_draft_that_slept_has_missed_nothing(server: Serving, models: dict[str, str]) -> None:
    algorithm, draft = PAIRS[server.pair]
    before = server.speckv()["draft_catch_ups"]
    if algorithm != "STANDALONE":  # a head never sleeps
        assert before == 0 and not server.speckv()["draft_sleeps"]
        return
    answers = doze(server)
    _, records = records_of(server)
    ours = [r for r in records if r.request in answers]
    slept = max(map(len, _runs_at_0(ours)))
    caught_up = server.speckv()["draft_catch_ups"] - before
    assert slept > WINDOW
    assert caught_up >= 3
    compare_with_transformers([r for r in ours if r.num_steps], answers, models[draft])


def doze(server: Serving) -> dict[str, list[int]]:
    """Answers that the draft slept through for longer than its window, woke and slept again."""
    server.pin(0)
    with churn(server, each=40) as answers:
        move(server, [(0, WINDOW + 20), (3, 4), (0, 20), (1, 4)])
    server.pin(-1)
    return answers


def shuffle(server: Serving, each: int) -> dict[str, list[int]]:
    """Answers whose depth went up and down every few rounds."""
    server.pin(DEPTHS[0])  # before the first request: rounds of a policy may stop in their drafts
    with churn(server, each) as answers:
        move(server, [(num_steps, 3) for num_steps in DEPTHS] * 4)
    server.pin(-1)
    return answers


def _runs_at_0(records: Sequence[Record]) -> Iterator[list[Record]]:
    """Consecutive rounds of one request at depth 0."""
    ordered = sorted(records, key=lambda r: (r.request, r.round))
    for (_, asleep), run in groupby(ordered, key=lambda r: (r.request, r.num_steps == 0)):
        if asleep:
            yield list(run)


def compare_with_transformers(
    records: list[Record],
    answers: dict[str, list[int]],
    path: str,
    prob_abs: float = 1e-3,
    entropy_abs: float = 1e-2,
    past_rejection: bool = True,
) -> None:
    """``past_rejection``: what follows a rejected draft as well, which no answer shows. It is taken
    to be the likeliest; in 16 bits the engine may have chosen another one that is as likely."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    draft = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)

    @cache
    @torch.no_grad()
    def behind(*text: int) -> torch.Tensor:
        """Logits behind every token."""
        return draft(torch.tensor([text])).logits[0]

    compared = 0
    # SGLang feeds a STANDALONE draft the prompt from its second token on (it shifts the draft's
    # input by one, as an EAGLE head needs it), so the draft never sees the first.
    for r in records:
        prompt = tokenizer(PROMPTS[int(r.prompt.split(":")[1])])["input_ids"]
        whole = prompt + answers[r.request]
        text, judged = whole[: r.context_len], whole[: r.context_len + r.num_correct_drafts]
        for top1_prob, entropy in zip(r.top1_prob, r.entropy, strict=True):
            seen = whole if text == whole[: len(text)] else text
            p = special.softmax(behind(*seen[1:])[len(text) - 2].double().numpy())
            assert top1_prob == pytest.approx(p.max(), abs=prob_abs)
            assert entropy == pytest.approx(stats.entropy(p), abs=entropy_abs)
            compared += 1
            rejected = len(text) >= len(judged)
            if rejected and not past_rejection:
                break
            text = [*text, int(p.argmax()) if rejected else judged[len(text)]]
    assert compared > 50


def test_the_trace_adds_up_with_the_counters(server: Serving) -> None:
    server.select("throughput")
    already = server.speckv()["request_rounds"]
    server.generate(PROMPTS, max_new_tokens=40)
    shown = server.speckv()
    _, records = records_of(server)
    assert shown["trace"]["dropped_rounds"] == 0
    assert len(records) == shown["request_rounds"]
    assert sum(r.num_correct_drafts for r in records) == shown["correct_drafts"]
    assert sum(r.num_steps for r in records) == shown["drafted_tokens"]
    verified = [r.num_steps if r.num_verified is None else r.num_verified for r in records]
    assert sum(verified) == shown["proposed_drafts"]
    rounds = {r.round for r in records}
    assert len(rounds) <= sum(shown["rounds"].values())
    chosen = records[already:]
    assert len(chosen) >= 40 / (STEPS[-1] + 1) * len(PROMPTS)
    assert {r.policy for r in chosen} == {"throughput"}
    assert "best" in {r.reason for r in chosen} and "pinned" not in {r.reason for r in chosen}
    assert np.isfinite([r.seconds for r in records if r.seconds is not None]).all()


def test_what_is_recorded_and_shown_holds_no_text(server: Serving) -> None:
    """The trace holds ids, which clients choose; what is shown to others holds not even these."""
    rid = f"class:words:{time.monotonic_ns()}"
    sampling = {"temperature": 0, "max_new_tokens": TOKENS, "ignore_eos": True}
    body = {"text": PROMPTS[3], "rid": rid, "sampling_params": sampling}
    answer = server.post("/generate", body)
    _, records = records_of(server)
    assert rid in {record.request for record in records}
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 16)  # the file is still written to
    lines = unpack.decompress(trace_files(server.trace)[0].read_bytes()).splitlines()
    shown = json.dumps(server.speckv()), requests.get(server.url + "/metrics", timeout=10).text
    metrics = "\n".join(line for line in shown[1].splitlines() if line.startswith("speckv:"))
    for place in (b"\n".join(lines).decode(), shown[0], metrics):
        assert not any(words in place for words in (*PROMPTS, answer["text"]))
        assert not re.search(r", ".join(map(str, answer["output_ids"][:6])), place)
    assert rid not in shown[0] and rid not in metrics
    fields = {"request", "policy", "reason"}
    for line in lines[1:]:
        texts = {key for key, value in json.loads(line).items() if isinstance(value, str)}
        assert texts <= fields


def test_profiled_before_ready(server: Serving) -> None:
    rows = server.speckv()["profile"]
    asleep = {OFF} if PAIRS[server.pair][0] == "STANDALONE" else set()
    assert {steps for size, steps, _ in rows if size == 1} == {0, 1, 3, 5} | asleep
    assert all(ms > 0 for *_, ms in rows)
    assert server.speckv()["signal_lag"] == {"mode": "auto", "rounds": 0, "host_waits": False}


def test_metrics_page(server: Serving) -> None:
    """It is brought up to date within about a second, though nothing more is served."""
    server.generate(PROMPTS, max_new_tokens=24)
    shown = server.speckv()
    deadline = time.monotonic() + 30
    while (found := _metrics(server))["speckv:rounds_total"] != sum(shown["rounds"].values()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert found["speckv:active"] == 1
    for name, key in {
        "correct_drafts_total": "correct_drafts",
        "drafted_tokens_total": "drafted_tokens",
        "decisions_total": "decisions",
        "switches_total": "switches",
    }.items():
        assert found[f"speckv:{name}"] == shown[key] > 0
    assert found["speckv:fallbacks_total"] == shown["fallbacks"] == 0


def _metrics(server: Serving) -> dict[str, float]:
    """Every metric, summed over its labels."""
    page = requests.get(server.url + "/metrics", timeout=10).text
    found: dict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found[sample.name] += sample.value
    return found
