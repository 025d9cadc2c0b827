"""Requests that would end a scheduler get HTTP 400 and one sentence; the next one is served."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.engine.conftest import PROMPTS, Serving, flags, serving
from tests.engine.reference import Reference

pytestmark = pytest.mark.engine

VOCABULARY = 320
LENGTH = 8
GREEDY = {"temperature": 0, "max_new_tokens": LENGTH, "ignore_eos": True}


def ask(path: str = "/generate", /, **body: Any) -> tuple[str, dict[str, Any]]:
    shape = {"sampling_params": GREEDY} if path == "/generate" else {"model": "m", "max_tokens": 4}
    return path, shape | body


def sample(**sampling: Any) -> tuple[str, dict[str, Any]]:
    return ask(text="abc", sampling_params=GREEDY | sampling)


EMPTY = "The prompt is empty"
BAD = {
    "empty text": (*ask(text=""), EMPTY),
    "empty text in a batch": (*ask(text=["a", ""]), EMPTY),
    "empty text, two samples": (*ask(text="", sampling_params=GREEDY | {"n": 2}), EMPTY),
    "empty text, no new tokens": (*ask(text="", sampling_params={"max_new_tokens": 0}), EMPTY),
    "no ids": (*ask(input_ids=[]), "input_ids cannot be empty"),
    "no ids in a batch": (*ask(input_ids=[[1], []]), EMPTY),
    "a batch of no ids": (*ask(input_ids=[[]]), EMPTY),
    "empty completion": (*ask("/v1/completions", prompt=""), "Prompt cannot be empty"),
    "empty completions": (*ask("/v1/completions", prompt=["a", ""]), EMPTY),
    "empty streamed": (*ask("/v1/completions", prompt=["a", ""], stream=True), EMPTY),
    "empty chat": (*ask("/v1/chat/completions", messages=[]), "Messages cannot be empty"),
    "negative id": (*ask(input_ids=[1, -1]), "The prompt has token id -1"),
    "unknown id": (*ask(input_ids=[[1], [VOCABULARY]]), f"token id {VOCABULARY}"),
    "unknown id, completion": (*ask("/v1/completions", prompt=[10**9]), "token id 1000000000"),
    "negative stop id": (*sample(stop_token_ids=[-1], min_new_tokens=2), "stop_token_ids"),
    "unknown stop id": (*sample(stop_token_ids=[10**9], min_new_tokens=2), "stop_token_ids"),
    "too many alternatives": (
        *ask(text="abc", return_logprob=True, top_logprobs_num=VOCABULARY + 1),
        f"top_logprobs_num is {VOCABULARY + 1}",
    ),
    "alternatives of a list": (
        *ask(text="abc", return_logprob=True, top_logprobs_num=[1, 2]),
        "top_logprobs_num is [1, 2]",
    ),
    "before the prompt": (
        *ask(text="abc", return_logprob=True, logprob_start_len=-5),
        "logprob_start_len is -5",
    ),
}


@pytest.fixture(scope="module", params=["plain", "speculative"])
def met(
    request: pytest.FixtureRequest,
    models: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Serving]:
    args = flags(models)
    if request.param == "speculative":
        args = [*flags(models, "STANDALONE", "alike"), "--speckv-profile", "0"]
    with serving(tmp_path_factory.mktemp(request.param), *args) as running:
        yield running


@pytest.fixture(scope="module")
def right(models: dict[str, str]) -> list[list[int]]:
    """Greedy answers by Transformers."""
    reference = Reference(models["target"])
    return [reference.greedy(prompt, LENGTH) for prompt in PROMPTS]


def send(server: Serving, path: str, body: dict[str, Any]) -> requests.Response:
    return requests.post(server.url + path, json=body, timeout=120)


@pytest.mark.parametrize("case", BAD)
def test_is_refused_and_the_next_is_served(met: Serving, right: list[list[int]], case: str) -> None:
    path, body, sentence = BAD[case]
    answer = send(met, path, body)
    assert (answer.status_code, sentence in answer.text) == (400, True), answer.text
    assert met.tokens(PROMPTS, LENGTH) == right


def test_a_stream_tells_it_too(met: Serving, right: list[list[int]]) -> None:
    answer = send(met, *ask(text="", stream=True))
    assert EMPTY in answer.text and answer.text.rstrip().endswith("[DONE]")
    assert met.tokens(PROMPTS, LENGTH) == right


def test_what_a_scheduler_admits_by_itself_is_checked_there(
    met: Serving, right: list[list[int]]
) -> None:
    """A session's prompt is known to the scheduler alone."""
    session = met.post("/open_session", {"capacity_of_str_len": 1000})
    for ids in ([], [10**9]):
        answer = send(met, *ask(input_ids=ids, session_params={"id": session}))
        assert answer.status_code == 400, answer.text
    assert met.tokens(PROMPTS, LENGTH) == right


def test_nothing_is_left_of_a_refused_batch(met: Serving, right: list[list[int]]) -> None:
    """Its ids are free again once its other entry was cancelled."""
    ids = ["first", "second"]
    assert send(met, *ask(text=["a", ""], rid=ids)).status_code == 400
    deadline = time.monotonic() + 60
    again = ask(text=PROMPTS[:2], rid=ids)
    while "Duplicate request ID" in (answer := send(met, *again)).text:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert [one["output_ids"] for one in answer.json()] == right[:2]
