"""Rejection sampling, where drafts are drawn and not the most probable: the text follows the target
at every depth, and the signals stay those of the draft's own distribution."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.conftest import ALL, PROMPTS, STEPS, Serving, flags, serving_with_stops
from tests.engine.reference import AT_A_TIME, Reference, follows_target, sampled
from tests.engine.test_signals import records_of

pytestmark = pytest.mark.engine
COLD = 1e-5
"""A temperature at which drawing gives the most probable token, by the code that draws. At 1e-3
another one was drawn once: logits of random weights may lie that close together."""


@pytest.fixture(scope="module")
def drawing(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("drawing")
    asked = ["--speckv", "--speckv-candidate-steps", ",".join(map(str, STEPS))]
    asked += ["--speckv-trace", str(folder), "--speckv-profile", "0"]
    asked += ["--speculative-use-rejection-sampling", "--max-running-requests", AT_A_TIME]
    launch = flags(models, "EAGLE", "eagle2")
    with serving_with_stops(folder, *launch, *asked) as running:
        running.trace = folder
        yield running


@pytest.mark.parametrize("top_p", [1.0, 0.8] if ALL else [0.8])
def test_sampled_text_follows_the_target(
    drawing: Serving, models: dict[str, str], top_p: float
) -> None:
    with drawing.shuffled_depths([3, 0, 1, 5]):
        answers = sampled(drawing, top_p)
    assert follows_target(answers, Reference(models["target"]), top_p)
    shown = drawing.speckv()
    assert min(shown["rounds"][str(steps)] for steps in STEPS) > 0
    assert shown["fallbacks"] == 0 and shown["correct_drafts"] > 0


def test_sampled_text_follows_the_target_where_rounds_change_while_they_run(
    drawing: Serving, models: dict[str, str]
) -> None:
    """Whether a draft is made and verified does not depend on what was drawn for it."""
    drawing.select("throughput")
    with drawing.forced_rounds():
        answers = sampled(drawing, 1.0)
    assert follows_target(answers, Reference(models["target"]), 1.0)
    shown = drawing.speckv()
    assert shown["stopped_rounds"] > 10 and shown["cut_drafts"] > 1000
    assert shown["fallbacks"] == 0 and not shown["failures"]


@pytest.mark.parametrize("num_steps", STEPS)
def test_signals_do_not_depend_on_what_is_drawn(drawing: Serving, num_steps: int) -> None:
    drawing.pin(num_steps)
    temperatures = {f"greedy{num_steps}": 0, f"drawn{num_steps}": COLD}
    for rid, temperature in temperatures.items():
        ask(drawing, rid, temperature)
    drawing.pin(-1)
    records = records_of(drawing)[1]
    greedy, drawn = ([r for r in records if r.request == rid] for rid in temperatures)
    assert all(r.sampled for r in drawn) and not any(r.sampled for r in greedy)
    # SGLang draws what is drafted behind a prompt at temperature 1 for a greedy request too, so the
    # first rounds may differ, and with them where the others begin.
    at = {r.context_len: r for r in greedy[1:]}
    pairs = [(r, at[r.context_len]) for r in drawn[1:] if r.context_len in at]
    assert len(pairs) > 20
    for ours, theirs in pairs:
        assert len(ours.top1_prob) == num_steps
        assert ours.num_correct_drafts == theirs.num_correct_drafts
        assert ours.top1_prob == pytest.approx(theirs.top1_prob, abs=1e-5)
        assert ours.entropy == pytest.approx(theirs.entropy, abs=1e-4)
        assert ours.first_prob == pytest.approx(theirs.first_prob, abs=1e-5)


def ask(server: Serving, rid: str, temperature: float) -> None:
    sampling = {"temperature": temperature, "max_new_tokens": 72, "ignore_eos": True}
    server.post("/generate", {"text": PROMPTS[3], "rid": rid, "sampling_params": sampling})
