"""One SGLang server over its native HTTP interface: requests and the few control calls. Every
failure is one sentence, every answer is bounded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from math import inf
from typing import Any, Self, TypeVar

import aiohttp
import msgspec

from sglang_speckv.ab.request import Completion
from sglang_speckv.files import BAD_JSON

_MAX_ANSWER_BYTES = 32 << 20
_MAX_STREAM_BYTES = 1 << 30  # SGLang repeats all tokens so far in every event
IDLE_S = 2.0
_T = TypeVar("_T")


class ServerError(RuntimeError):
    """A server that died, hung or answered nonsense: one sentence."""


_Logprob = tuple[float | None, int, Any]


class _Meta(msgspec.Struct):
    """The log-probabilities are (value, token, text), of each token that was read back and of the
    likeliest in its place. The first of each list has no value."""

    completion_tokens: int = 0
    spec_verify_ct: int = 0
    spec_num_correct_drafts: int = 0
    input_token_logprobs: list[_Logprob] = []
    input_top_logprobs: list[list[_Logprob] | None] = []


class _Event(msgspec.Struct):
    meta_info: _Meta


class _Answer(_Event):
    output_ids: list[int]


class Client:
    """Speaks to one SGLang server, which may want a ``key``; use as an async context manager."""

    def __init__(
        self, name: str, url: str, timeout_s: float = 300.0, key: str | None = None
    ) -> None:
        self.name = name
        self.url = url.rstrip("/")
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)

    async def __aenter__(self) -> Self:
        # No limit on connections: the load's concurrency is the limit. An idle one is given up
        # before a server gives it up (after 5 s by default) just as a request is sent on it.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S)
        self._session = aiohttp.ClientSession(
            timeout=self._timeout, connector=connector, headers=self._headers
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._session.close()

    async def generate(
        self,
        input_ids: Sequence[int],
        max_new_tokens: int,
        request_id: str | None = None,
        temperature: float = 0.0,
    ) -> Completion:
        """The continuation of exactly ``max_new_tokens`` tokens, streamed."""
        body = _request_body(input_ids, max_new_tokens, temperature) | {"stream": True}
        if request_id is not None:
            body["rid"] = request_id
        start = time.perf_counter()
        events = [
            (time.perf_counter() - start, event) async for event in self.events("/generate", body)
        ]
        e2e_s = time.perf_counter() - start
        last = events[-1][1] if events else b""
        if last.startswith(b'{"error"'):
            text = last[:300].decode("utf-8", "replace")
            raise ServerError(f"server {self.name}: /generate failed ({text})")
        answer = self.decode(last, _Answer, "/generate")
        meta, counted = answer.meta_info, answer.meta_info.completion_tokens
        if not counted == len(answer.output_ids) == max_new_tokens:
            raise ServerError(
                f"server {self.name}: asked for {max_new_tokens} tokens, got "
                f"{len(answer.output_ids)} and a count of {counted}"
            )
        return Completion(
            tuple(answer.output_ids),
            meta.spec_verify_ct,
            meta.spec_num_correct_drafts,
            counted,
            e2e_s,
            events[0][0],
            arrived=tuple(
                (moment, self.decode(event, _Event, "/generate").meta_info.completion_tokens)
                for moment, event in events
            ),
        )

    async def gaps(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        """By how much the log-probability of each token of ``answer`` is below that of the
        likeliest token at its place, read in one prefill of ``prompt`` and ``answer``."""
        body = _request_body([*prompt, *answer], 1)
        body |= {"return_logprob": True, "top_logprobs_num": 1}
        body["logprob_start_len"] = len(prompt) - 1
        raw = await self.call("POST", "/generate", body)
        told = self.decode(raw, _Event, "/generate").meta_info
        own, top = told.input_token_logprobs[1:], told.input_top_logprobs[1:]
        best = [row[0][0] if row else None for row in top]
        values = [value for value, *_ in own]
        if [token for _, token, _ in own] != list(answer) or len(top) != len(own):
            raise ServerError(f"server {self.name}: /generate returned no log-probabilities")
        pairs = zip(best, values, strict=True)
        return [inf if b is None or value is None else b - value for b, value in pairs]

    async def internal_states(self) -> list[dict[str, Any]]:
        """Those of ``/server_info``, one per data-parallel rank: live, where the top level is
        start-up. Raises :class:`ServerError` where there is none."""
        raw = await self.call("GET", "/server_info")
        info = self.decode(raw, dict[str, Any], "/server_info")
        states = info.get("internal_states")
        if not isinstance(states, list) or not states or not isinstance(states[0], dict):
            raise ServerError(f"server {self.name}: /server_info has no internal_states")
        return states

    async def internal_state(self) -> dict[str, Any]:
        """That of the only rank. Raises :class:`ServerError` where there is another number."""
        states = await self.internal_states()
        if len(states) > 1:
            raise ServerError(
                f"server {self.name} has {len(states)} data-parallel ranks, which are not measured "
                "together; start it without --dp-size"
            )
        return states[0]

    async def set_policy(self, policy: str) -> None:
        """Switch the SpecKV policy of a running server."""
        # SGLang's request carries numbers only, so the name is in the key
        await self.set_state(f"speckv_policy:{policy}", 1, f"the policy {policy!r}")

    async def set_state(self, key: str, value: int, what: str) -> None:
        """Change an internal state of a running server on all of its data-parallel ranks. ``what``
        names it in the error where one refuses."""
        raw = await self.call("POST", "/set_internal_state", {"server_args": {key: value}})
        answers = self.decode(raw, list[bool], "/set_internal_state")
        if not answers or not all(answers):
            raise ServerError(f"server {self.name} refused {what}")

    async def flush_cache(self, attempts: int = 50) -> None:
        """Forget cached prefixes. Right after a request the scheduler may still call itself
        busy, so a refusal is asked again for a while."""
        for _ in range(attempts):
            try:
                await self.call("POST", "/flush_cache")
                return
            except ServerError as error:
                last = error
                await asyncio.sleep(0.1)
        raise last

    async def ready(self) -> bool:
        """Whether the server has answered a one-token request."""
        try:
            await self.call("GET", "/health_generate")
        except ServerError:
            return False
        return True

    async def call(self, method: str, path: str, body: Any = None) -> bytes:
        """The answer's body. Raises :class:`ServerError` on anything but status 200."""
        content = bytearray()
        async with self._request(method, path, body) as response:
            async for chunk in response.content.iter_any():
                content += chunk
                if len(content) > _MAX_ANSWER_BYTES:
                    raise ValueError(f"the answer is over {_MAX_ANSWER_BYTES >> 20} MB")
        return bytes(content)

    def decode(self, raw: bytes, kind: type[_T], path: str) -> _T:
        try:
            return msgspec.json.decode(raw, type=kind)
        except BAD_JSON as error:
            raise ServerError(
                f"server {self.name}: {path} answered something unexpected ({error})"
            ) from None

    async def events(self, path: str, body: Any) -> AsyncGenerator[bytes]:
        """The data of each server-sent event, as it arrives, up to ``[DONE]``."""
        rest, total = b"", 0
        async with self._request("POST", path, body) as response:
            async for chunk in response.content.iter_any():
                total += len(chunk)
                *lines, rest = (rest + chunk).split(b"\n")
                if total > _MAX_STREAM_BYTES or len(rest) > _MAX_ANSWER_BYTES:
                    raise ValueError("the stream does not end")
                for line in lines:
                    data = line.removeprefix(b"data:").strip()
                    if data == b"[DONE]":
                        return
                    if data and line.startswith(b"data:"):
                        yield data
        raise ServerError(f"server {self.name}: {path} broke off in the middle of an answer")

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, body: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            async with self._session.request(method, self.url + path, json=body) as response:
                if response.status != 200:
                    text = (await response.content.read(200)).decode("utf-8", "replace").strip()
                    raise ServerError(
                        f"server {self.name}: {path} answered {response.status} ({text})"
                    )
                yield response
        except TimeoutError:
            raise ServerError(
                f"server {self.name}: no answer from {path} within {self._timeout.total:.0f} s"
            ) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise ServerError(f"server {self.name}: {path} failed ({reason[:200]})") from None


def _request_body(
    input_ids: Sequence[int], max_new_tokens: int, temperature: float = 0.0
) -> dict[str, Any]:
    sampling = {"temperature": temperature, "max_new_tokens": max_new_tokens, "ignore_eos": True}
    return {"input_ids": list(input_ids), "sampling_params": sampling, "stream": False}
