"""The depth never changes the text: every draft, every depth, and depths that move every few
rounds give the greedy answers of the target alone (float32)."""

from typing import Any

import pytest

from tests.engine.conftest import ALL, PAIRS, PROMPTS, STEPS, Serving, on_pairs

SERVED = tuple(PAIRS) if ALL else tuple(PAIRS)[:-1]
"""Of a draft that is hardly ever right `make test` looks at the text in test_adapts."""
pytestmark = [pytest.mark.engine, on_pairs(*SERVED)]
BOTH_KINDS = ("eagle3", "standalone-self")
"""An EAGLE-3 head and a draft model. `make test` serves EAGLE-2 at the ends of the depths and while
they move."""


def check(server: Serving, plain_answers: dict[str, Any], alone: int = 1) -> None:
    """All prompts together, and ``alone`` of them one after the other."""
    assert server.tokens(PROMPTS) == plain_answers["batch"]
    found = [server.tokens([prompt])[0] for prompt in PROMPTS[:alone]]
    assert found == plain_answers["alone"][:alone]


@pytest.mark.parametrize("num_steps", STEPS)
def test_fixed_depth(server: Serving, plain_answers: dict[str, Any], num_steps: int) -> None:
    if not (ALL or server.pair in BOTH_KINDS or num_steps in (STEPS[0], STEPS[-1])):
        pytest.skip("make exact runs it")
    server.select(f"static:{num_steps}")
    before = server.speckv()["rounds"]
    check(server, plain_answers)
    after = server.speckv()["rounds"]
    assert {step for step in after if after[step] > before[step]} == {str(num_steps)}


@pytest.mark.parametrize("policy", ["throughput", "ema"])
def test_policies(server: Serving, plain_answers: dict[str, Any], policy: str) -> None:
    if not (ALL or server.pair in BOTH_KINDS):
        pytest.skip("make exact runs it")
    server.select(policy)
    check(server, plain_answers)
    shown = server.speckv()
    assert (shown["active"], shown["policy"], shown["fallbacks"]) == (True, policy, 0)


def test_moving_depth(server: Serving, plain_answers: dict[str, Any]) -> None:
    """Quietly: no line of the log tells of a switch."""
    switches, already = server.speckv()["switches"], len(log_lines(server))
    with server.shuffled_depths([5, 0, 3, 1]):
        check(server, plain_answers, alone=len(PROMPTS))
    assert server.speckv()["switches"] > switches + 5
    assert log_lines(server)[already:] == []


def test_rounds_that_change_while_they_run(server: Serving, plain_answers: dict[str, Any]) -> None:
    server.select("throughput")
    before = server.speckv()
    with server.forced_rounds():
        check(server, plain_answers, alone=len(PROMPTS))
    after = server.speckv()
    stopped = after["stopped_rounds"] - before["stopped_rounds"]
    assert stopped > 10
    served = {step: n - before["rounds"][step] for step, n in after["rounds"].items()}
    assert served["3"] == stopped and served["5"], "the first look is after two drafts"
    cut = after["cut_drafts"] - before["cut_drafts"]
    assert 0.2 < cut / (after["drafted_tokens"] - before["drafted_tokens"]) < 0.8
    assert after["fallbacks"] == before["fallbacks"] and not after["failures"]
    assert after["stops"] == after["widths"] == "on"


def test_counts_add_up(server: Serving) -> None:
    server.flush_cache()  # SGLang's prefixes hold the draft's KV of another next token
    server.select("static:3")
    before = server.speckv()
    answers = server.generate(PROMPTS, max_new_tokens=32)
    after = server.speckv()
    correct = after["correct_drafts"] - before["correct_drafts"]
    rounds = after["request_rounds"] - before["request_rounds"]
    assert rounds == sum(answer["meta_info"]["spec_verify_ct"] for answer in answers)
    assert correct == sum(answer["meta_info"]["spec_num_correct_drafts"] for answer in answers)
    assert after["proposed_drafts"] - before["proposed_drafts"] == 3 * rounds
    if server.pair == "standalone-self":
        assert correct >= 0.9 * 3 * rounds


def log_lines(server: Serving) -> list[str]:
    """Those that SGLang does not write for every request or batch."""
    lines = server.log.read_text(errors="replace").splitlines()
    usual = ("HTTP/1.1", "Prefill batch", "Decode batch", " of SpecKV, ")  # the last: counted
    return [line for line in lines if not any(word in line for word in usual)]
