"""What a soak asks: requests of mixed lengths and parameters; clients give some of them up."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from sglang_speckv.ab.client import Client, ServerError

VOCABULARY = 320
CONTEXT = 2048
EXACT_SHARE = 0.1
"""Of the requests whose parameters SGLang's verification does not apply token by token."""
SAMPLED = {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "ignore_eos": True}
EXACT: tuple[dict[str, Any], ...] = (
    {"frequency_penalty": 0.7},
    {"presence_penalty": 1.1},
    {"repetition_penalty": 1.2},
    {"frequency_penalty": 0.3, "presence_penalty": 0.4, "repetition_penalty": 1.1},
    {"min_p": 1.0, "temperature": 1.0},
    {"min_new_tokens": 6, "stop_token_ids": [*range(2, VOCABULARY, 9)], "ignore_eos": False},
)
GREEDY = {"temperature": 0, "ignore_eos": True}
REGEX = {"regex": "(yes|no), [0-9a-f]{9}", "ignore_eos": False}


@dataclass(frozen=True)
class Asked:
    """One request. ``compared``: its answer is the target's alone, token by token. ``gives_up``:
    "hang-up" or "abort", after the first piece of the answer."""

    kind: str
    rid: str
    body: dict[str, Any]
    compared: bool = False
    gives_up: str = ""

    @property
    def tokens(self) -> int:
        return int(self.body["sampling_params"]["max_new_tokens"])


@dataclass
class Answer:
    """``meta`` is SGLang's ``meta_info`` of the whole answer; empty where the client hung up."""

    asked: Asked
    output_ids: list[int] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def whole(self) -> bool:
        return bool(self.meta) and self.meta["finish_reason"]["type"] != "abort"


class Mix:
    """Draws requests; the same seed draws the same ones."""

    def __init__(self, seed: int, longest: int = 160) -> None:
        self._random = random.Random(seed)
        self._longest = longest
        self._drawn = 0
        self._shared = self._ids(64)
        self._kinds: dict[str, tuple[float, Callable[[], dict[str, Any]]]] = {
            "greedy": (6, dict),
            "sampled": (3, lambda: {"sampling_params": SAMPLED}),
            "seeded": (1, lambda: {"sampling_params": SAMPLED | {"sampling_seed": 7}}),
            "streamed": (3, lambda: {"stream": True}),
            "log-probabilities": (1, lambda: {"return_logprob": True, "top_logprobs_num": 2}),
            "regex": (1, lambda: {"sampling_params": GREEDY | REGEX}),
            "stop token": (1, lambda: {"sampling_params": self._stopped()}),
            "cached prefix": (2, lambda: {"input_ids": [*self._shared, *self._ids(8)]}),
            "hang-up": (1.5, lambda: {"stream": True}),
            "abort": (1.5, lambda: {"stream": True}),
        }

    def draw(self) -> Asked:
        self._drawn += 1
        rid = f"soak:{self._drawn}:{self._random.randrange(1 << 32)}"
        if self._random.random() < EXACT_SHARE:
            params = self._random.choice(EXACT)
            return self._asked("exact", rid, {"sampling_params": GREEDY | params})
        weights = [weight for weight, _ in self._kinds.values()]
        (kind,) = self._random.choices(list(self._kinds), weights)
        return self._asked(kind, rid, self._kinds[kind][1]())

    def _asked(self, kind: str, rid: str, special: dict[str, Any]) -> Asked:
        gives_up = kind if kind in ("hang-up", "abort") else ""
        length = 400 if gives_up else self._length(self._longest)
        body = {"input_ids": self._ids(self._length(300)), "rid": rid, **special}
        params = special.get("sampling_params", GREEDY)
        body["sampling_params"] = {"max_new_tokens": max(length, 12), **params}
        greedy = params.get("temperature") == 0 or params.get("min_p") == 1.0
        return Asked(kind, rid, body, greedy and not gives_up, gives_up)

    def _length(self, most: int) -> int:
        """Mostly short, now and then long."""
        return max(1, int(most ** self._random.random()))

    def _ids(self, count: int) -> list[int]:
        return [self._random.randrange(2, 256) for _ in range(count)]

    def _stopped(self) -> dict[str, Any]:
        return {"temperature": 0, "stop_token_ids": self._ids(4)}


async def ask(client: Client, asked: Asked) -> Answer:
    """The answer, or what was wrong with it. What a client gave up is no error."""
    answer = Answer(asked)
    try:
        if asked.body.get("stream"):
            await _streamed(client, answer)
        else:
            _take(answer, await client.call("POST", "/generate", asked.body))
    except (ServerError, ValueError) as error:
        answer.error = f"{asked.kind}: {error!r:.200}"
    answer.error = answer.error or problem_of(answer)
    return answer


async def _streamed(client: Client, answer: Answer) -> None:
    gives_up = answer.asked.gives_up
    async with aclosing(client.events("/generate", answer.asked.body)) as events:
        async for event in events:
            _take(answer, event)
            if gives_up == "hang-up":
                answer.meta = {}
                return  # leaving the block closes the connection
            if gives_up == "abort":
                gives_up = ""
                await client.call("POST", "/abort_request", {"rid": answer.asked.rid})


def _take(answer: Answer, raw: bytes) -> None:
    told = json.loads(raw)
    if "meta_info" not in told:
        raise ValueError(f"it answered {raw[:120]!r}")
    answer.meta = told["meta_info"]
    answer.output_ids = told.get("output_ids", answer.output_ids)


def problem_of(answer: Answer) -> str:
    """What the answer contradicts itself in."""
    asked, meta, counted = answer.asked, answer.meta, len(answer.output_ids)
    if not meta:
        return "" if asked.gives_up else f"{asked.kind}: no answer"
    told = meta["completion_tokens"]
    if told != counted or counted > asked.tokens:
        return f"{asked.kind}: {counted} tokens came, {told} were counted, {asked.tokens} asked for"
    if answer.whole and asked.body["sampling_params"].get("ignore_eos"):
        return "" if counted == asked.tokens else f"{asked.kind}: {counted} of {asked.tokens}"
    correct, rounds = meta.get("spec_num_correct_drafts", 0), meta.get("spec_verify_ct", 0)
    if counted > 1 + rounds + correct and rounds:
        return f"{asked.kind}: {counted} tokens of {rounds} rounds with {correct} correct drafts"
    return ""


async def together(client: Client, requests: list[Asked], at_once: int) -> list[Answer]:
    """All of ``requests``, so many at a time."""
    slots = asyncio.Semaphore(at_once)

    async def one(asked: Asked) -> Answer:
        async with slots:
            return await ask(client, asked)

    return list(await asyncio.gather(*map(one, requests)))
