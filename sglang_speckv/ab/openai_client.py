"""Any running server with the OpenAI interface, as an arm: it is measured, not steered."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from typing import Any, Self

import httpx
import openai

from sglang_speckv.ab.client import ServerError
from sglang_speckv.ab.request import Completion, Prompt

_MAX_CHARS = 32 << 20
_NOT_STREAMED = 3  # pieces: a role, all of the answer, its end
_MANY = 16  # tokens: a server that streams may send so many at a time
_FAILURES = (
    openai.OpenAIError,
    httpx.HTTPError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
)
"""The client's own, and what comes of answers in another form: it checks none."""


def api_key(name: str) -> str:
    """``SPECKV_API_KEY_NAME`` of the environment, else ``OPENAI_API_KEY``, else one that servers
    without keys ignore."""
    own = "SPECKV_API_KEY_" + re.sub(r"\W", "_", name.removeprefix("url:")).upper()
    return os.environ.get(own) or os.environ.get("OPENAI_API_KEY") or "none"


class OpenAIClient:
    """Streams chat completions; use as an async context manager. ``/v1`` at the end of the address
    may be given or not. The server's caches are emptied before a block only if ``flush``."""

    def __init__(self, name: str, url: str, timeout_s: float = 300.0, flush: bool = False) -> None:
        self.name, self.model = name, ""
        self.url = url.rstrip("/").removesuffix("/v1")
        self._timeout_s, self._flush = timeout_s, flush

    async def __aenter__(self) -> Self:
        self._client = openai.AsyncOpenAI(
            base_url=self.url + "/v1",
            api_key=api_key(self.name),
            timeout=self._timeout_s,
            max_retries=0,
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._client.close()

    async def find_model(self) -> None:
        """Ask which model it serves; the first one is used."""
        try:
            models = (await self._client.models.list()).data
            self.model = models[0].id
        except _FAILURES as error:
            raise self._failed("/v1/models", error) from None

    async def chat(
        self, prompt: Prompt, max_new_tokens: int, temperature: float = 0.0
    ) -> Completion:
        """Tokens are counted by the server (``usage``). How many had arrived by a moment is told
        from the share of the text.

        Raises:
            ServerError: the server fails, does not stream, or does not count as it was asked.
        """
        start = time.perf_counter()
        text: list[tuple[float, int]] = []
        pieces, usage = 0, None  # type: int, Any
        request: Any = {
            "model": self.model,
            "messages": prompt.chat(),
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            # SGLang's and vLLM's; nothing else fixes the output length
            "extra_body": {"ignore_eos": True},
        }
        try:
            stream = await self._client.chat.completions.create(**request)
            async for chunk in stream:
                usage = chunk.usage or usage
                pieces += bool(chunk.choices)
                chars = sum(_chars(choice.delta) for choice in chunk.choices)
                if chars:  # the first chunk may hold a role only
                    chars += text[-1][1] if text else 0
                    text.append((time.perf_counter() - start, chars))
                if chars > _MAX_CHARS:
                    raise ValueError("the answer does not end")
        except _FAILURES as error:
            raise self._failed("/v1/chat/completions", error) from None
        e2e_s = time.perf_counter() - start
        tokens = getattr(usage, "completion_tokens", None)
        if not isinstance(tokens, int) or tokens < 1:
            raise ServerError(f"server {self.name} does not count tokens (stream_options)")
        if tokens > max_new_tokens:
            raise ServerError(
                f"server {self.name} counts {tokens} tokens where {max_new_tokens} were asked for"
            )
        if pieces <= _NOT_STREAMED and tokens > _MANY:
            raise ServerError(
                f"server {self.name} does not stream its answers: {tokens} tokens came in {pieces} "
                "pieces, and nothing tells when each of them was there"
            )
        return Completion(
            (),
            tokens=tokens,
            e2e_s=e2e_s,
            ttft_s=text[0][0] if text else None,
            arrived=_arrivals(text, tokens, e2e_s),
        )

    async def flush_cache(self) -> None:
        """Where it is wanted and the server can: SGLang's call, else vLLM's."""
        if not self._flush:
            return
        headers = {"Authorization": f"Bearer {api_key(self.name)}"}
        async with httpx.AsyncClient(headers=headers, timeout=self._timeout_s) as client:
            for path in ("/flush_cache", "/reset_prefix_cache"):
                with suppress(httpx.HTTPError):
                    if (await client.post(self.url + path)).is_success:
                        return

    def _failed(self, path: str, error: Exception) -> ServerError:
        if isinstance(error, openai.APITimeoutError):
            return ServerError(
                f"server {self.name}: no answer from {path} within {self._timeout_s:.0f} s"
            )
        if isinstance(error, openai.OpenAIError):
            return ServerError(f"server {self.name}: {path} failed ({str(error)[:200]})")
        return ServerError(
            f"server {self.name}: {path} answered something unexpected ({str(error)[:200]})"
        )


def _chars(delta: Any) -> int:
    """Of the answer, and of the reasoning before it, for which servers have two names."""
    thought = getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None)
    return len(delta.content or "") + len(thought or "")


def _arrivals(
    text: list[tuple[float, int]], tokens: int, e2e_s: float
) -> tuple[tuple[float, int], ...]:
    """(time, tokens by then) from (time, characters by then)."""
    before = [(moment, round(tokens * seen / text[-1][1])) for moment, seen in text[:-1]]
    return (*before, (e2e_s, tokens))
