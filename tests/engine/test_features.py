"""What SGLang offers beside plain generation, with the depth moving every few rounds: each feature
gives what the target alone gives, and is really in use."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from tests.engine.conftest import PROMPTS, TOKENS, Serving, flags, on_pairs, serving

pytestmark = [pytest.mark.engine, on_pairs("eagle3", "standalone-self")]
SHARED = "The same words come first, and they come again. " * 8
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]{12}$"},
        "kinds": {
            "type": "array",
            "items": {"enum": ["code", "talk"]},
            "minItems": 3,
            "maxItems": 4,
        },
    },
    "required": ["name", "kinds"],
    "additionalProperties": False,
}


def cached_prefix(server: Serving) -> Any:
    """Prompts that share their first half."""
    server.flush_cache()
    server.tokens([SHARED], 1)
    answers = server.generate([SHARED + prompt for prompt in PROMPTS])
    assert min(answer["meta_info"]["cached_tokens"] for answer in answers) >= len(SHARED) - 1
    return [answer["output_ids"] for answer in answers]


def chunked_prefill(server: Serving) -> Any:
    """A prompt of more tokens than one prefill takes."""
    server.flush_cache()
    limit = requests.get(server.url + "/server_info", timeout=60).json()["chunked_prefill_size"]
    prompt = SHARED * (limit // len(SHARED) + 1)
    assert 0 < limit < len(prompt)
    return server.tokens([prompt], 24)


def retraction(server: Serving) -> Any:
    """More tokens than the KV cache holds: requests are put back and prefilled again. For
    answers that may end early SGLang reserves seven tenths of their length, so it admits all."""
    server.flush_cache()
    before = retracted(server)
    prompts = [f"{n}: {SHARED[:180]}" for n in range(16)]
    answers = server.generate(prompts, 92, ignore_eos=False)
    assert retracted(server) > before
    return [answer["output_ids"] for answer in answers]


def retracted(server: Serving) -> int:
    return server.log.read_text(errors="replace").count("Retract requests")


def json_schema(server: Serving) -> Any:
    answers = server.generate(PROMPTS, 128, ignore_eos=False, json_schema=json.dumps(SCHEMA))
    for answer in answers:
        found = json.loads(answer["text"])
        assert re.fullmatch("[a-z]{12}", found["name"]) and len(found["kinds"]) >= 3
    return [answer["output_ids"] for answer in answers]


def regex(server: Serving) -> Any:
    pattern = "(yes|no|perhaps), [0-9a-f]{16}[.]"
    answers = server.generate(PROMPTS, 40, ignore_eos=False, regex=pattern)
    assert all(re.fullmatch(pattern, answer["text"]) for answer in answers)
    return [answer["output_ids"] for answer in answers]


def log_probabilities(server: Serving) -> Any:
    body = {
        "text": PROMPTS,
        "sampling_params": {"temperature": 0, "max_new_tokens": 32, "ignore_eos": True},
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": 2,
    }
    answers = server.post("/generate", body)
    found = []
    for answer in answers:
        meta = answer["meta_info"]
        assert [token for _, token, _ in meta["output_token_logprobs"]] == answer["output_ids"]
        tops = meta["output_top_logprobs"]
        assert len(tops) == 32 and all(len(top) == 2 for top in tops)
        found.append([meta["input_token_logprobs"], meta["output_token_logprobs"], tops])
    return found


def stop_string(server: Serving) -> Any:
    whole = server.generate(PROMPTS[:1])[0]["text"]
    answer = server.generate(PROMPTS[:1], stop=[whole[20:23]])[0]
    assert answer["meta_info"]["finish_reason"]["matched"] == whole[20:23]
    return answer["text"], answer["meta_info"]["completion_tokens"]


def stop_token(server: Serving) -> Any:
    whole = server.tokens(PROMPTS[:1])[0]
    answer = server.generate(PROMPTS[:1], ignore_eos=False, stop_token_ids=[whole[20]])[0]
    assert answer["meta_info"]["finish_reason"]["matched"] == whole[20]
    return answer["output_ids"]


def several_answers(server: Serving) -> Any:
    answers = server.generate(PROMPTS, n=3)
    assert len(answers) == 3 * len(PROMPTS)
    return [answer["output_ids"] for answer in answers]


def streaming(server: Serving) -> Any:
    body = {"prompt": PROMPTS[3], "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    pieces = [event["choices"][0]["text"] for event in stream(server, "/v1/completions", body)]
    whole = server.post("/v1/completions", {"model": "default", **body})["choices"][0]["text"]
    assert "".join(pieces) == whole and len(pieces) > 3
    return whole


def abort(server: Serving) -> Any:
    """A request that is told to end while others go on."""
    body = {
        "text": PROMPTS[0],
        "rid": "unwanted",
        "sampling_params": {"temperature": 0, "max_new_tokens": 1500, "ignore_eos": True},
    }
    events = stream(server, "/generate", body)
    next(events)
    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(server.tokens, PROMPTS, 64)
        server.command("/abort_request", {"rid": "unwanted"})
        *_, last = events
        assert last["meta_info"]["finish_reason"]["type"] == "abort"
        return others.result()


def stream(server: Serving, path: str, body: dict[str, Any]) -> Iterator[Any]:
    """The events of a stream."""
    asked = {"model": "default", **body, "stream": True}
    with requests.post(server.url + path, json=asked, stream=True, timeout=120) as answer:
        for line in answer.iter_lines():
            if line and line != b"data: [DONE]":
                yield json.loads(line.removeprefix(b"data: "))


FEATURES: dict[str, Callable[[Serving], Any]] = {
    feature.__name__: feature
    for feature in (
        *(cached_prefix, chunked_prefill, retraction, json_schema, regex, log_probabilities),
        *(stop_string, stop_token, several_answers, streaming, abort),
    )
}


@pytest.fixture(scope="session")
def alone(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every feature's answers of the target without speculation."""
    with serving(tmp_path_factory.mktemp("alone"), *flags(models)) as plain:
        return {name: feature(plain) for name, feature in FEATURES.items()}


@pytest.mark.parametrize("name", FEATURES)
def test_feature(server: Serving, alone: dict[str, Any], name: str) -> None:
    with server.shuffled_depths([3, 0, 5, 1]):
        assert alike(FEATURES[name](server), alone[name])


def alike(left: Any, right: Any) -> bool:
    """Equal, floats within 1e-3."""
    if isinstance(left, float):
        return bool(left == pytest.approx(right, abs=1e-3))
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(alike, left, right))
    return bool(left == right)
