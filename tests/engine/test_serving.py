"""What a client and an operator meet: the OpenAI API, aborts, sampling, steering from outside."""

import threading
import time
from typing import Any

import pytest
import requests
from scipy import stats

from sglang_speckv.cli import main
from tests.engine.conftest import PROMPTS, STEPS, Serving, on_pairs

pytestmark = [pytest.mark.engine, on_pairs("eagle3", "standalone-self")]


def test_openai_chat(server: Serving) -> None:
    answer = server.post(
        "/v1/chat/completions",
        {
            "model": "default",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 8,
            "temperature": 0,
        },
    )
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert 0 < answer["usage"]["completion_tokens"] <= 8


def test_aborted_streams_leave_a_healthy_server(server: Serving) -> None:
    server.select("throughput")
    body = {
        "text": PROMPTS[0],
        "sampling_params": {"temperature": 0, "max_new_tokens": 1000, "ignore_eos": True},
        "stream": True,
    }

    def hang_up() -> None:
        with requests.post(server.url + "/generate", json=body, stream=True, timeout=60) as answer:
            next(answer.iter_lines())

    before = server.speckv()
    threads = [threading.Thread(target=hang_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    expected = server.tokens(PROMPTS)
    for thread in threads:
        thread.join()
    deadline = time.monotonic() + 30
    while running_requests(server) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert running_requests(server) == 0
    assert server.tokens(PROMPTS) == expected
    after = server.speckv()
    served = sum(after[key] - before[key] for key in ("request_rounds", "correct_drafts"))
    assert served < len(threads) * 1000, "they were not decoded to their end"
    assert after["fallbacks"] == 0


def running_requests(server: Serving) -> int:
    loads = requests.get(server.url + "/v1/loads", timeout=60).json()["loads"]
    return sum(load["num_running_reqs"] for load in loads)


def test_sampling_follows_the_targets_distribution(server: Serving) -> None:
    """The first three sampled tokens against the target's own frequencies: the first comes from
    prefill, the others from verification at a depth that moves."""
    with server.shuffled_depths([3, 0, 5, 1]):
        drafted = sampled(server, 400)
    server.pin(0)
    alone = sampled(server, 400)
    cold = sampled(server, 150, temperature=0.2)
    server.pin(-1)
    for position in (1, 2):
        assert same_distribution([t[position] for t in drafted], [t[position] for t in alone])
    assert not same_distribution([t[1] for t in cold], [t[1] for t in alone]), "it never tells"


def sampled(server: Serving, count: int, temperature: float = 1.0) -> list[list[int]]:
    answers = server.generate(
        [PROMPTS[1]] * count, max_new_tokens=3, temperature=temperature, top_k=8
    )
    return [answer["output_ids"] for answer in answers]


def same_distribution(left: list[int], right: list[int]) -> bool:
    """Chi-square on the tokens that are common enough; p below 1e-4 is no accident."""
    tokens = [t for t in set(left) | set(right) if left.count(t) + right.count(t) >= 20]
    table = [[side.count(t) for t in tokens] for side in (left, right)]
    rest = [len(side) - sum(row) for side, row in zip((left, right), table, strict=True)]
    table = [[*row, other + 1] for row, other in zip(table, rest, strict=True)]
    return bool(stats.chi2_contingency(table).pvalue > 1e-4)


def test_steering_refuses_what_is_not_there(server: Serving) -> None:
    before = server.speckv()
    assert not server.set_state(speckv_num_steps=4)
    assert not server.set_state(**{"speckv_policy:magic": 1})
    assert not server.set_state(**{"speckv_policy:ema": 2})
    after = server.speckv()
    assert (after["policy"], after["pinned"]) == (before["policy"], before["pinned"])


def test_speckv_ctl_steers_by_names(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    def ctl(*words: str) -> dict[str, Any]:
        monkeypatch.setattr("sys.argv", ["speckv", "ctl", server.url, *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return server.speckv()

    assert ctl("policy", "ema")["policy"] == "ema"
    assert [ctl(*words)["pinned"] for words in (["pin", "3"], ["off"], ["release"])] == [3, 0, None]
    assert ctl("policy", "throughput")["policy"] == "throughput"


def test_server_info_shows_what_was_chosen(server: Serving) -> None:
    server.select("throughput")
    server.generate(PROMPTS, max_new_tokens=64)
    shown: dict[str, Any] = server.speckv()
    assert shown["active"] is True
    assert shown["candidate_steps"] == list(STEPS)
    assert sum(shown["rounds"].values()) >= len(shown["recent"]) > 0
    assert shown["correct_drafts"] <= shown["proposed_drafts"]
    assert shown["decisions"] > 0
    assert sum(shown["policy_state"]["labels"]) > 0
