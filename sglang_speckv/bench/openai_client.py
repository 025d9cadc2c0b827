"""Any server with the OpenAI interface, as an arm: it is measured, not steered."""

from __future__ import annotations

import time
from contextlib import suppress

import msgspec

from sglang_speckv.bench.connection import Connection, ServerError
from sglang_speckv.bench.load import Completion
from sglang_speckv.bench.prompts import Prompt


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None

    @property
    def text(self) -> str:
        return "".join(choice.delta.content or "" for choice in self.choices)


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class OpenAIClient(Connection):
    """Streams chat completions; ``/v1`` at the end of the address may be given or not."""

    def __init__(self, name: str, url: str, timeout_s: float = 300.0) -> None:
        super().__init__(name, url.rstrip("/").removesuffix("/v1"), timeout_s)
        self.model = ""

    async def find_model(self) -> None:
        """Ask which model it serves; the first one is used."""
        raw = await self.call("GET", "/v1/models")
        models = self.decode(raw, _Models, "/v1/models").data
        if not models:
            raise ServerError(f"server {self.name} serves no model")
        self.model = models[0].id

    async def chat(
        self, prompt: Prompt, max_new_tokens: int, request_id: str, temperature: float = 0.0
    ) -> Completion:
        """Tokens are counted by the server (``usage``); only how many had arrived by a moment is
        told from the share of the text."""
        body = {
            "model": self.model,
            "messages": prompt.chat(),
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,  # SGLang's and vLLM's; the output length is fixed like this only
            "rid": request_id,
        }
        start, usage = time.perf_counter(), None
        text: list[tuple[float, str]] = []
        async for event in self.events("/v1/chat/completions", body):
            chunk = self.decode(event, _Chunk, "/v1/chat/completions")
            if chunk.choices:
                text.append((time.perf_counter() - start, chunk.text))
            usage = chunk.usage or usage
        if usage is None or usage.completion_tokens < 1:
            raise ServerError(f"server {self.name} does not count tokens (stream_options)")
        latency_s = time.perf_counter() - start
        return Completion(
            (),
            tokens=usage.completion_tokens,
            latency_s=latency_s,
            first_s=text[0][0] if text else None,
            arrived=_arrivals(text, usage.completion_tokens),
        )

    async def flush_cache(self) -> None:
        """Where the server can: SGLang's call, vLLM's call, else nothing."""
        for path in ("/flush_cache", "/reset_prefix_cache"):
            with suppress(ServerError):
                await self.call("POST", path)
                return


def _arrivals(text: list[tuple[float, str]], tokens: int) -> tuple[tuple[float, int], ...]:
    """(time, tokens by then): all of them at the end, before it by the share of the text."""
    whole = sum(len(part) for _, part in text)
    if not whole:
        return tuple((seconds, tokens) for seconds, _ in text[-1:])
    seen, found = 0, []
    for seconds, part in text:
        seen += len(part)
        found.append((seconds, round(tokens * seen / whole)))
    return tuple(found)
