"""What a request can ask of SGLang, one function per feature.

Each asks a server and returns what has to be the same whatever is drafted: token ids, texts,
counts, reasons, log-probabilities. It also asserts that the feature was really in use. To add a
feature, write a function that says in its docstring what it asks, and name it in :data:`FEATURES`,
which ``docs/exactness.md`` lists.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests

from tests.engine.conftest import PROMPTS, TOKENS, Serving

CONTEXT = 2048
"""Of the tiny models."""
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


def greedy(server: Serving) -> Any:
    """Greedy text."""
    return server.tokens(PROMPTS), [server.tokens([prompt])[0] for prompt in PROMPTS[:2]]


def together(server: Serving, length: int = TOKENS, **sampling: Any) -> list[Any]:
    """Answers to all prompts at once, the last two with ``sampling``."""
    return unlike(server, [{}, {}, sampling, sampling], length)


def unlike(server: Serving, sampling: list[dict[str, Any]], length: int = TOKENS) -> list[Any]:
    """Answers to all prompts at once, each with its own parameters."""
    usual = {"temperature": 0, "max_new_tokens": length, "ignore_eos": True}
    body = {"text": PROMPTS, "sampling_params": [usual | own for own in sampling]}
    answers: list[Any] = server.post("/generate", body)
    return answers


def ends(answers: list[Any]) -> Any:
    """Ids, lengths and reasons."""
    return [
        (
            answer["output_ids"],
            answer["meta_info"]["completion_tokens"],
            answer["meta_info"]["finish_reason"],
        )
        for answer in answers
    ]


def changed(server: Serving, **sampling: Any) -> Any:
    """Ids of :func:`together`, which ``sampling`` has to change where it is asked for."""
    usual, found = server.tokens(PROMPTS), ids(together(server, **sampling))
    assert found[:2] == usual[:2] and found[2] != usual[2] and found[3] != usual[3]
    return found


def ids(answers: list[Any]) -> list[list[int]]:
    return [answer["output_ids"] for answer in answers]


def frequency_penalty(server: Serving) -> Any:
    """A penalty by how often a token came, beside requests without one."""
    return changed(server, frequency_penalty=1.0)


def presence_penalty(server: Serving) -> Any:
    """A penalty on every token that came."""
    return changed(server, presence_penalty=1.5)


def repetition_penalty(server: Serving) -> Any:
    """A factor on every token that came."""
    return changed(server, repetition_penalty=1.3)


def three_penalties(server: Serving) -> Any:
    """All three penalties at once."""
    three = {"presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1}
    return changed(server, **three)


def min_new_tokens(server: Serving) -> Any:
    """A least length, reached and passed, with a stop token that would have come before."""
    whole = server.tokens(PROMPTS[-1:])[0]
    stops = {"stop_token_ids": [whole[3]], "ignore_eos": False}
    answers = [together(server, min_new_tokens=least, **stops) for least in (3, 4, 12)]
    assert answers[0][3]["output_ids"] == whole[:4]
    assert min(answer[3]["meta_info"]["completion_tokens"] for answer in answers[1:]) > 4
    return [ends(answer) for answer in answers]


def min_p(server: Serving) -> Any:
    """The least likely tokens cut off; at 1 only the likeliest is left."""
    found = ids(together(server, temperature=1.0, min_p=1.0))
    assert found == server.tokens(PROMPTS)
    return found


BANS = json.dumps(
    {
        "callable": b"csglang.srt.sampling.custom_logit_processor\n"
        b"DisallowedTokensLogitsProcessor\n.".hex()
    }
)
"""SGLang's own, serialised: a pickle that names it."""


def custom_logit_processor(server: Serving) -> Any:
    """SGLang's processor that bans tokens."""
    usual = server.tokens(PROMPTS)
    banned = sorted({*usual[2][:6], *usual[3][:6]})
    own = {"custom_params": {"token_ids": banned}}
    params = {"temperature": 0, "max_new_tokens": TOKENS, "ignore_eos": True}
    body = {
        "text": PROMPTS,
        "custom_logit_processor": [None, None, BANS, BANS],
        "sampling_params": [params, params, params | own, params | own],
    }
    found = ids(server.post("/generate", body))
    assert found[:2] == usual[:2] and not {*found[2], *found[3]} & {*banned}
    return found


def logit_bias(server: Serving) -> Any:
    """A bias against likely tokens."""
    usual = server.tokens(PROMPTS)
    against = {str(token): -100.0 for token in {*usual[2][:6], *usual[3][:6]}}
    return changed(server, logit_bias=against)


def everything_at_once(server: Serving) -> Any:
    """Four requests of one batch, each with parameters of its own, and log-probabilities."""
    against = {str(server.tokens(PROMPTS[2:3])[0][0]): -100.0}
    sampling: list[dict[str, Any]] = [
        {"frequency_penalty": 1.0, "logit_bias": against},
        {},
        {"temperature": 0.7, "min_p": 1.0, "logit_bias": against},
        {"regex": "[0-9a-f ]{40}", "presence_penalty": 2.0, "ignore_eos": False},
    ]
    usual = {"temperature": 0, "max_new_tokens": TOKENS, "ignore_eos": True}
    body = {
        "text": PROMPTS,
        "sampling_params": [usual | own for own in sampling],
        "return_logprob": True,
        "top_logprobs_num": 2,
    }
    answers = server.post("/generate", body)
    return [
        [answer["meta_info"][name] for name in ("output_token_logprobs", "output_top_logprobs")]
        for answer in answers
    ]


def max_tokens(server: Serving) -> Any:
    """Lengths of 1 and of any number of tokens, told as such."""
    found = [ends(server.generate(PROMPTS, length)) for length in (1, 2, 7)]
    assert [answer[1] for answer in found[2]] == [7] * len(PROMPTS)
    return found


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
    """More tokens than the KV cache holds: requests are put back and prefilled again."""
    # For answers that may end early SGLang reserves seven tenths of their length: it admits all.
    server.flush_cache()
    before = retracted(server)
    prompts = [f"{n}: {SHARED[:180]}" for n in range(16)]
    answers = server.generate(prompts, 92, ignore_eos=False)
    assert retracted(server) > before
    return [answer["output_ids"] for answer in answers]


def retraction_with_penalty(server: Serving) -> Any:
    """Penalised requests that are put back go on as if they never were. (Without speculation SGLang
    forgets their tokens, so there the KV cache has to hold them.)"""
    server.flush_cache()
    before = retracted(server)
    prompts, speculates = [f"{n}: {SHARED[:180]}" for n in range(16)], bool(server.pair)
    sizes = (16,) if speculates else (8, 8)
    params = {"ignore_eos": False, "frequency_penalty": 0.3, "min_new_tokens": 92}
    answers = [
        server.generate(prompts[size * turn :][:size], 92, **params)
        for turn, size in enumerate(sizes)
    ]
    assert (retracted(server) > before) == speculates
    return [answer["output_ids"] for group in answers for answer in group]


def retracted(server: Serving) -> int:
    return server.log.read_text(errors="replace").count("Retract requests")


def json_schema(server: Serving) -> Any:
    """JSON that follows a schema."""
    answers = server.generate(PROMPTS, 128, ignore_eos=False, json_schema=json.dumps(SCHEMA))
    for answer in answers:
        found = json.loads(answer["text"])
        assert re.fullmatch("[a-z]{12}", found["name"]) and len(found["kinds"]) >= 3
    return [answer["output_ids"] for answer in answers]


def ebnf(server: Serving) -> Any:
    """Text that follows a grammar."""
    grammar = 'root ::= word (" " word){5}\nword ::= [a-f]{3}'
    answers = server.generate(PROMPTS, 40, ignore_eos=False, ebnf=grammar)
    assert all(re.fullmatch("[a-f]{3}( [a-f]{3}){5}", answer["text"]) for answer in answers)
    return ends(answers)


def regex_to_the_end(server: Serving) -> Any:
    """A pattern that is complete before the answer's length, with its end told as such or not."""
    pattern = {"regex": "The answer is 42[.]"}
    return [ends(together(server, 40, ignore_eos=end, **pattern)) for end in (False, True)]


def regex_and_penalty(server: Serving) -> Any:
    """A pattern and a penalty in one request."""
    sampling = {"regex": "[0-9a-f]{20}", "frequency_penalty": 2.0, "ignore_eos": False}
    return ends(together(server, 40, **sampling))


def regex(server: Serving) -> Any:
    """Text that follows a pattern."""
    pattern = "(yes|no|perhaps), [0-9a-f]{16}[.]"
    answers = server.generate(PROMPTS, 40, ignore_eos=False, regex=pattern)
    assert all(re.fullmatch(pattern, answer["text"]) for answer in answers)
    return [answer["output_ids"] for answer in answers]


def log_probabilities(server: Serving) -> Any:
    """Log-probabilities of prompt and output, the likeliest tokens and any that are asked for."""
    body = {
        "text": PROMPTS,
        "sampling_params": {"temperature": 0, "max_new_tokens": 32, "ignore_eos": True},
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": 2,
        "token_ids_logprob": [5, 9],
    }
    answers = server.post("/generate", body)
    found = []
    for answer in answers:
        meta = answer["meta_info"]
        assert [token for _, token, _ in meta["output_token_logprobs"]] == answer["output_ids"]
        tops = meta["output_top_logprobs"]
        assert len(tops) == 32 and all(len(top) == 2 for top in tops)
        asked = meta["output_token_ids_logprobs"]
        assert len(asked) == 32
        found.append([meta["input_token_logprobs"], meta["output_token_logprobs"], tops, asked])
    return found


def stop_string(server: Serving) -> Any:
    """A string that ends the answer."""
    whole = server.generate(PROMPTS[:1])[0]["text"]
    answer = server.generate(PROMPTS[:1], stop=[whole[20:23]])[0]
    assert answer["meta_info"]["finish_reason"]["matched"] == whole[20:23]
    return answer["text"], answer["meta_info"]["completion_tokens"]


def stop_token(server: Serving) -> Any:
    """A token that ends the answer."""
    whole = server.tokens(PROMPTS[:1])[0]
    answer = server.generate(PROMPTS[:1], ignore_eos=False, stop_token_ids=[whole[20]])[0]
    assert answer["meta_info"]["finish_reason"]["matched"] == whole[20]
    return answer["output_ids"]


def stop_token_and_string(server: Serving) -> Any:
    """A stop token and, a few tokens later, a stop string: the first one ends the answer."""
    whole = server.generate(PROMPTS[3:])[0]
    found = []
    for at in range(4, 16, 3):
        text = server.generate(PROMPTS[3:], at + 1)[0]["text"]
        string = whole["text"][len(text) :][:1]
        if (
            string
            and string not in text
            and whole["output_ids"][at] not in whole["output_ids"][:at]
        ):
            stops = {"stop_token_ids": [whole["output_ids"][at]], "stop": [string]}
            answers = together(server, ignore_eos=False, **stops)
            assert answers[3]["meta_info"]["completion_tokens"] == at + 1
            found.append(ends(answers))
    assert len(found) > 1
    return found


def stop_regex(server: Serving) -> Any:
    """A pattern that ends the answer."""
    answers = together(server, stop_regex="[a-z][^a-z]")
    assert answers[3]["meta_info"]["completion_tokens"] < TOKENS
    return ends(answers)


def several_answers(server: Serving) -> Any:
    """Several answers to one prompt, with a penalty and without."""
    penalised = server.generate(PROMPTS[:2], n=2, frequency_penalty=1.0)
    answers = server.generate(PROMPTS, n=3)
    assert len(answers) == 3 * len(PROMPTS)
    return ids(answers), ids(penalised)


def streaming(server: Serving) -> Any:
    """A stream, whose pieces of multi-byte text add up."""
    body = {"prompt": PROMPTS[3], "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    pieces = [event["choices"][0]["text"] for event in stream(server, "/v1/completions", body)]
    whole = server.post("/v1/completions", {"model": "default", **body})["choices"][0]["text"]
    assert "".join(pieces) == whole and len(pieces) > 3
    return whole


def streamed_usage(server: Serving) -> Any:
    """A streamed chat with its usage, with a penalty and without."""
    return streamed_chat(server), streamed_chat(server, frequency_penalty=1.0)


def streamed_chat(server: Serving, **asked: Any) -> Any:
    """Text, reason and usage."""
    body = {
        "messages": [{"role": "user", "content": "Count from one to twenty in words."}],
        "temperature": 0,
        "max_tokens": TOKENS,
        "stream_options": {"include_usage": True},
    }
    events = list(stream(server, "/v1/chat/completions", body | asked))
    choices = [choice for event in events for choice in event["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    usage = next(event["usage"] for event in reversed(events) if event.get("usage"))
    assert usage["completion_tokens"] == TOKENS and len(events) > 3
    return text, choices[-1]["finish_reason"], usage


TOOL = {
    "name": "look_up",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"word": {"type": "string", "pattern": "^[a-z]{8}$"}},
        "required": ["word"],
        "additionalProperties": False,
    },
}


def tool_call(server: Serving) -> Any:
    """A chat that has to call a tool, whole and as a stream, and one that may."""
    body = {
        "messages": [{"role": "user", "content": "Look up a word."}],
        "temperature": 0,
        "max_tokens": 64,
        "tools": [{"type": "function", "function": TOOL}],
    }
    must = body | {"tool_choice": {"type": "function", "function": {"name": TOOL["name"]}}}
    answers = [chat(server, asked) for asked in (must, body)]
    events = stream(server, "/v1/chat/completions", must)
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    pieces = [call["function"] for delta in deltas for call in delta.get("tool_calls") or []]
    (call,) = answers[0]["message"]["tool_calls"]
    del call["id"]  # a random one
    assert re.fullmatch("[a-z]{8}", json.loads(call["function"]["arguments"])["word"])
    streamed = "".join(piece.get("arguments") or "" for piece in pieces)
    assert json.loads(streamed) == json.loads(call["function"]["arguments"])
    return answers, streamed


def chat(server: Serving, body: dict[str, Any]) -> Any:
    """The one choice of an answer."""
    asked = {"model": "default", **body}
    (choice,) = server.post("/v1/chat/completions", asked)["choices"]
    return choice


def priority(server: Serving) -> Any:
    """A request that goes before others, which wait for room in the KV cache."""
    server.flush_cache()
    with ThreadPoolExecutor(1) as pool:
        many = [f"{n}: {SHARED[:180]}" for n in range(28)]
        waiting = pool.submit(generate_with_priority, server, many, 0)
        time.sleep(0.3)
        first = generate_with_priority(server, [f"now: {SHARED}"], 9)
        assert not waiting.done()
        return ids(first), ids(waiting.result())


def generate_with_priority(server: Serving, prompts: list[str], value: int) -> list[Any]:
    sampling = {"temperature": 0, "max_new_tokens": 92, "ignore_eos": True}
    body = {"text": prompts, "sampling_params": sampling, "priority": value}
    answers: list[Any] = server.post("/generate", body)
    return answers


def bounds_of_its_own(server: Serving) -> Any:
    """Requests that say how many drafts they take, beside others and all of them."""
    bounds = [{"custom_params": {"speckv": {"max_steps": steps}}} for steps in (0, 2)]
    some, every = [{}, *bounds, {}], [*bounds, *bounds]
    return ids(unlike(server, some)), ids(unlike(server, every))


def flush(server: Serving) -> Any:
    """The same prompts before and after the cache is flushed."""
    first = server.tokens(PROMPTS)
    server.flush_cache()
    answers = server.generate(PROMPTS)
    assert {answer["meta_info"]["cached_tokens"] for answer in answers} == {0}
    assert ids(answers) == first
    return first


def streamed_log_probabilities(server: Serving) -> Any:
    """One log-probability for every streamed token, with a penalty and without."""
    found = []
    for own in ({}, {"frequency_penalty": 1.0}):
        sampling = {"temperature": 0, "max_new_tokens": TOKENS, "ignore_eos": True} | own
        body = {"text": PROMPTS[1], "sampling_params": sampling, "return_logprob": True}
        *_, last = stream(server, "/generate", body)
        entries = last["meta_info"]["output_token_logprobs"]
        assert [token for _, token, _ in entries] == last["output_ids"]
        assert len(entries) == TOKENS
        found.append(entries)
    return found


def session(server: Serving) -> Any:
    """Two turns of a session, the second one with a penalty."""
    name = server.post("/open_session", {"capacity_of_str_len": 1000})
    params = {"temperature": 0, "max_new_tokens": TOKENS, "ignore_eos": True}
    turn = {"session_params": {"id": name}, "rid": "first", "sampling_params": params}
    first = server.post("/generate", turn | {"text": PROMPTS[0]})
    turn |= {"session_params": {"id": name, "rid": "first"}, "rid": "second"}
    penalised = {"sampling_params": params | {"frequency_penalty": 1.0}}
    second = server.post("/generate", turn | penalised | {"text": PROMPTS[1]})
    server.command("/close_session", {"session_id": name})
    lengths = [answer["meta_info"]["prompt_tokens"] for answer in (first, second)]
    assert lengths[1] > lengths[0] + TOKENS
    return ids([first, second]), lengths


def another_turn(server: Serving) -> Any:
    """A prompt that goes on from an answer."""
    first = server.generate(PROMPTS)
    again = [p + a["text"] + " And" for p, a in zip(PROMPTS, first, strict=True)]
    return ids(server.generate(again, frequency_penalty=0.5)), ids(server.generate(again))


def pause(server: Serving) -> Any:
    """A request that waits while the server is paused."""
    sampling = {"temperature": 0, "max_new_tokens": 80, "ignore_eos": True}
    events = stream(server, "/generate", {"text": PROMPTS[0], "sampling_params": sampling})
    next(events)
    server.command("/pause_generation", {"mode": "in_place"})
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(server.generate, PROMPTS[1:2], frequency_penalty=0.5)
        time.sleep(0.2)
        assert not other.done()
        server.command("/continue_generation", {})
        *_, last = events
        return last["output_ids"], ids(other.result())


def end_of_the_context(server: Serving) -> Any:
    """An answer that the end of the context cuts off."""
    body = {
        "input_ids": [1 + n % 200 for n in range(CONTEXT - 16)],
        "sampling_params": {"temperature": 0, "max_new_tokens": 16, "ignore_eos": True},
    }
    server.flush_cache()
    answer = server.post("/generate", body)
    assert answer["meta_info"]["completion_tokens"] < 16
    return ends([answer])


def full_kv(server: Serving) -> Any:
    """Requests that fill the KV cache to its last tokens; nothing is put back."""
    server.flush_cache()
    before, prompt = retracted(server), [1 + n % 200 for n in range(CONTEXT - 32)]
    body = {
        "input_ids": [prompt, [7, *prompt[1:]]],
        "sampling_params": {"temperature": 0, "max_new_tokens": 28, "ignore_eos": True},
    }
    answers = server.post("/generate", body)
    assert retracted(server) == before
    return ends(answers)


def abort_all(server: Serving) -> Any:
    """All requests aborted; the next ones are served."""
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(server.generate, PROMPTS, 1500)
        time.sleep(0.5)
        server.command("/abort_request", {"rid": "", "abort_all": True})
        reasons = {answer["meta_info"]["finish_reason"]["type"] for answer in answers.result()}
    assert reasons == {"abort"}
    return server.tokens(PROMPTS)


def hang_up(server: Serving) -> Any:
    """A client that closes its stream while others go on."""
    sampling = {"temperature": 0, "max_new_tokens": 1500, "ignore_eos": True}
    events = stream(server, "/generate", {"text": PROMPTS[0], "sampling_params": sampling})
    next(events)
    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(server.tokens, PROMPTS)
        events.close()
        return others.result()


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


def stream(server: Serving, path: str, body: dict[str, Any]) -> Generator[Any]:
    """The events of a stream."""
    asked = {"model": "default", **body, "stream": True}
    with requests.post(server.url + path, json=asked, stream=True, timeout=120) as answer:
        for line in answer.iter_lines():
            if line and line != b"data: [DONE]":
                yield json.loads(line.removeprefix(b"data: "))


FEATURES: dict[str, Callable[[Serving], Any]] = {
    feature.__name__: feature
    for feature in (
        *(greedy, max_tokens, logit_bias, stop_string, stop_token, stop_token_and_string),
        *(stop_regex, frequency_penalty, presence_penalty, repetition_penalty, three_penalties),
        *(min_new_tokens, min_p, custom_logit_processor, everything_at_once, several_answers),
        *(json_schema, regex, regex_to_the_end, regex_and_penalty, ebnf, log_probabilities),
        *(
            tool_call,
            priority,
            bounds_of_its_own,
            flush,
            streamed_log_probabilities,
            streaming,
            streamed_usage,
        ),
        *(cached_prefix, another_turn, session, chunked_prefill),
        *(retraction, retraction_with_penalty, abort, abort_all, hang_up, pause),
        *(end_of_the_context, full_kv),
    )
}
