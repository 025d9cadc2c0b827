"""Requests that would end a scheduler get HTTP 400 and one sentence; the next one is served."""

from __future__ import annotations

import json
import os
import random
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
    "top_k of 41 bits": (*sample(top_k=2**40, temperature=1), "top_k is 1099511627776"),
    "two billion answers": (*sample(n=2**31), "n is 2147483648"),
    "no answers": (*sample(n=0), "n is 0"),
    "answers of no number": (
        *ask(text=["a", "b"], sampling_params=[GREEDY | {"n": None}] * 2),
        "n is",
    ),
    "a million chats": (
        *ask("/v1/chat/completions", messages=[{"role": "user", "content": "a"}], n=10**6),
        "n is 1000000",
    ),
    "a million completions": (*ask("/v1/completions", prompt="a", n=10**6), "n is 1000000"),
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
    "embeddings without tensors": (
        *ask(text="abc", positional_embed_overrides=5),
        "positional_embed_overrides",
    ),
    "bounds of a number": (*sample(custom_params={"speckv": 3}), "is 3: send"),
    "less than no drafts": (
        *sample(custom_params={"speckv": {"max_steps": -1}}),
        "is -1: send a number from 0 on",
    ),
    "bounds that are unknown": (
        *ask(
            "/v1/chat/completions",
            messages=[{"role": "user", "content": "a"}],
            custom_params={"speckv": {"max_step": 2}},
        ),
        "max_steps",
    ),
    "hidden states": (*ask(text="abc", return_hidden_states=True), "hidden"),
    "narrow embeddings": (*ask(input_embeds=[[0.5, 0.5]]), "input_embeds"),
    "ragged embeddings": (*ask(input_embeds=[[0.5] * 128, [0.5]]), "input_embeds"),
    "release of memory": ("/release_memory_occupation", {}, "The CPU engine keeps its memory"),
    "resumption of memory": ("/resume_memory_occupation", {}, "The CPU engine keeps its memory"),
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
        args += ["--disable-radix-cache"]  # which lets embeddings in
        args += ["--return-hidden-states-mode", "full"]  # the plain one refuses them itself
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


PARAMETERS = (
    *("temperature", "top_p", "top_k", "min_p", "n", "sampling_seed", "max_new_tokens"),
    *("min_new_tokens", "frequency_penalty", "presence_penalty", "repetition_penalty"),
    *("stop", "stop_token_ids", "stop_regex", "logit_bias", "regex", "json_schema", "ebnf"),
    *("structural_tag", "ignore_eos", "skip_special_tokens", "no_stop_trim", "custom_params"),
)
FIELDS = (
    *("text", "input_ids", "input_embeds", "return_logprob", "logprob_start_len", "stream"),
    *("top_logprobs_num", "token_ids_logprob", "return_text_in_logprobs", "rid", "priority"),
    *("extra_key", "session_params", "return_hidden_states", "custom_logit_processor"),
    *("lora_path", "routed_dp_rank", "image_data", "require_reasoning", "bootstrap_room"),
)
VALUES: list[Any] = [
    *(None, True, False, -2, -1, 0, 1, 7, VOCABULARY - 1, VOCABULARY, 2**31, 2**63, 10**30),
    *(0.5, -0.5, 1e308, -1e308, 1e-300, float("nan"), float("inf"), float("-inf")),
    *("", "abc", "\0", "7", "\ud800", "x" * 5000, "(", "[a-z]{3}", '{"type": "object"}'),
    *([], [0], [1, 2], [-1], ["a"], [""], [None], [[1]], [[]], [1.5], [10**9], [True], [{}]),
    *({}, {"1": 1}, {"1": "a"}, {"a": 1}, {"-1": 5}, {"999999": 1}, {"1": 1e308}, {"x": [1]}),
]
EXAMPLES = int(os.environ.get("SPECKV_EXAMPLES", "30"))


def test_any_parameters(met: Serving, right: list[list[int]]) -> None:
    """Taken or refused. The only HTTP 500 are of SGLang's own reading of two fields."""
    chance = random.Random(EXAMPLES)
    for number in range(EXAMPLES):
        path, body = sample()
        for _ in range(chance.choice([1, 1, 1, 2, 3])):
            if chance.random() < 0.6:
                body["sampling_params"][chance.choice(PARAMETERS)] = chance.choice(VALUES)
            else:
                body[chance.choice(FIELDS)] = chance.choice(VALUES)
        if body.get("input_ids") is not None:
            del body["text"]
        raw = json.dumps(body).encode("utf-8", "surrogatepass")
        kind = {"Content-Type": "application/json"}
        answer = requests.post(met.url + path, data=raw, headers=kind, timeout=120)
        theirs = {"session_params", "rid"} & body.keys()
        assert answer.status_code in ((200, 400, 422, 500) if theirs else (200, 400, 422)), body
        if number % 50 == 49:
            assert met.tokens(PROMPTS, LENGTH) == right, body
    assert met.tokens(PROMPTS, LENGTH) == right
