"""Any server with the OpenAI interface, as an arm: it is measured, not steered."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import msgspec

from sglang_speckv.bench.connection import Connection, ServerError
from sglang_speckv.bench.load import Completion
from sglang_speckv.bench.prompts import Prompt


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Chunk(msgspec.Struct):
    choices: list[Any] = []
    usage: _Usage | None = None


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
        """Tokens are counted by the server (``usage``), never from the text."""
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
        start, first_s, usage = time.perf_counter(), None, None
        async for event in self.events("/v1/chat/completions", body):
            chunk = self.decode(event, _Chunk, "/v1/chat/completions")
            if first_s is None and chunk.choices:
                first_s = time.perf_counter() - start
            usage = chunk.usage or usage
        if usage is None or usage.completion_tokens < 1:
            raise ServerError(f"server {self.name} does not count tokens (stream_options)")
        latency_s = time.perf_counter() - start
        tokens = usage.completion_tokens
        return Completion((), tokens=tokens, latency_s=latency_s, first_s=first_s)

    async def flush_cache(self) -> None:
        """Where the server can: SGLang's call, vLLM's call, else nothing."""
        for path in ("/flush_cache", "/reset_prefix_cache"):
            with suppress(ServerError):
                await self.call("POST", path)
                return
