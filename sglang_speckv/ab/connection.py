"""HTTP to one server, every failure one sentence, every answer bounded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar

import aiohttp
import msgspec

from sglang_speckv.files import BAD_JSON

_MAX_ANSWER_BYTES = 32 << 20
_MAX_STREAM_BYTES = 1 << 30  # SGLang repeats all tokens so far in every event
IDLE_S = 2.0
_T = TypeVar("_T")


class ServerError(RuntimeError):
    """A server that died, hung or answered nonsense: one sentence."""


class Connection:
    """Speaks to one server; use as an async context manager."""

    def __init__(self, name: str, url: str, timeout_s: float = 300.0) -> None:
        self.name = name
        self.url = url.rstrip("/")
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)

    async def __aenter__(self) -> Self:
        # No limit on connections: the load's concurrency is the limit. An idle one is given up
        # before a server gives it up (after 5 s by default) just as a request is sent on it.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S)
        self._session = aiohttp.ClientSession(timeout=self._timeout, connector=connector)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._session.close()

    async def call(self, method: str, path: str, body: Any = None) -> bytes:
        """The answer's body; raises :class:`ServerError` on anything but status 200."""
        async with self._request(method, path, body) as response:
            return await _bounded_read(response.content, _MAX_ANSWER_BYTES)

    async def events(self, path: str, body: Any) -> AsyncIterator[bytes]:
        """The data of each server-sent event, as it arrives, up to ``[DONE]``."""
        async with self._request("POST", path, body) as response:
            rest, total = b"", 0
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

    def decode(self, raw: bytes, kind: type[_T], path: str) -> _T:
        try:
            return msgspec.json.decode(raw, type=kind)
        except BAD_JSON as error:
            raise ServerError(
                f"server {self.name}: {path} answered something unexpected ({error})"
            ) from None

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, body: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            async with self._session.request(method, self.url + path, json=body) as response:
                if response.status != 200:
                    content = await _bounded_read(response.content, _MAX_ANSWER_BYTES)
                    text = content[:200].decode("utf-8", "replace").strip()
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


async def _bounded_read(stream: aiohttp.StreamReader, limit: int) -> bytes:
    content = bytearray()
    async for chunk in stream.iter_chunked(1 << 16):
        content += chunk
        if len(content) > limit:
            raise ValueError(f"the answer is over {limit >> 20} MB")
    return bytes(content)
