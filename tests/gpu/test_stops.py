"""Rounds that the device stops after some of their drafts, in captured draft graphs."""

from __future__ import annotations

from msgspec.structs import replace

from tests.engine.conftest import PROMPTS, TOKENS, Serving
from tests.engine.test_signals import compare_with_transformers, records_of
from tests.gpu.conftest import (
    KINDS,
    SIGNAL_TOLERANCE,
    STEPS,
    WHOLE,
    Kind,
    References,
    on_gpu,
    on_kinds,
)

MORE = [Kind("standalone-self", backend, lag="0") for backend in ("flashinfer", "fa3")]
pytestmark = [*on_gpu, on_kinds(*KINDS, *(MORE if WHOLE else ()))]
Pair = tuple[Kind, Serving]


def test_rounds_that_the_device_stops(
    gpu_server: Pair, references: References, models: dict[str, str]
) -> None:
    """After 1 to 5 drafts, in batches of four and fewer. What a draft says after such a round shows
    that it missed nothing."""
    kind, server = gpu_server
    server.select("throughput")
    before = server.speckv()
    sampling = {"temperature": 0, "max_new_tokens": 2 * TOKENS, "ignore_eos": True}
    names = [f"stops:{i}:" for i in range(len(PROMPTS))]
    with server.forced_rounds():
        found = server.post(
            "/generate", {"text": PROMPTS, "rid": names, "sampling_params": sampling}
        )
    after = server.speckv()
    answers = {name: one["output_ids"] for name, one in zip(names, found, strict=True)}
    texts = [answer[:TOKENS] for answer in answers.values()]
    assert references[kind.backend].losses(texts) == []
    assert after["stops"] == "on" and after["widths"].startswith("off: ")
    ours = [r for r in records_of(server)[1] if r.request in answers and r.reason == "best"]
    made = [r.num_steps if r.num_verified is None else r.num_verified for r in ours]
    assert set(made) == set(range(1, STEPS[-1] + 1))
    assert {r.num_steps for r in ours} == {STEPS[-1]}
    for r, drafts in zip(ours, made, strict=True):
        assert r.num_correct_drafts <= drafts and r.stopped == (drafts < STEPS[-1])
        assert all(p > 0 for p in r.top1_prob[:drafts])
        assert all(p == -1 for p in r.top1_prob[drafts:])
    counted = {key: after[key] - before[key] for key in ("drafted_tokens", "proposed_drafts")}
    assert set(counted.values()) == {sum(made)}
    assert after["stopped_rounds"] > before["stopped_rounds"]
    assert (after["fallbacks"], after["failures"]) == (before["fallbacks"], {})
    if kind.pair == "standalone-self":
        said = [
            replace(r, top1_prob=r.top1_prob[:drafts], entropy=r.entropy[:drafts])
            for r, drafts in zip(ours, made, strict=True)
        ]
        compare_with_transformers(said, answers, models["target"], *SIGNAL_TOLERANCE)
