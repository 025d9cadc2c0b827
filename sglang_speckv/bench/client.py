"""Closed-loop load on one server over its native HTTP interface, and the few control calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import msgspec

_MAX_ANSWER_BYTES = 32 << 20
_T = TypeVar("_T")


class ServerError(RuntimeError):
    """A server that died, hung or answered nonsense: one sentence."""


class _MetaInfo(msgspec.Struct):
    completion_tokens: int
    spec_verify_ct: int = 0
    spec_num_correct_drafts: int = 0


class _Answer(msgspec.Struct):
    output_ids: list[int]
    meta_info: _MetaInfo


class _Top2Meta(msgspec.Struct):
    output_top_logprobs: list[list[tuple[float, int, Any]]]


class _Top2Answer(msgspec.Struct):
    meta_info: _Top2Meta


@dataclass(frozen=True)
class Completion:
    """One answer, counted by the engine. ``verify_ct`` is its verify rounds; 0 if not drafting."""

    output_ids: tuple[int, ...]
    verify_ct: int
    num_correct_drafts: int


@dataclass(frozen=True)
class Load:
    """Completions in the order of their prompts, and the wall time of them all."""

    completions: tuple[Completion, ...]
    seconds: float

    @property
    def tokens(self) -> int:
        return sum(len(completion.output_ids) for completion in self.completions)


class Client:
    """Speaks to one server; use as an async context manager."""

    def __init__(self, name: str, url: str, timeout_s: float = 300.0) -> None:
        self.name = name
        self._url = url
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)

    async def __aenter__(self) -> Client:
        # no limit on connections: the load's concurrency is the limit
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(timeout=self._timeout, connector=connector)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._session.close()

    async def run_load(
        self, prompts: Sequence[Sequence[int]], concurrency: int, max_new_tokens: int
    ) -> Load:
        """Answer all ``prompts`` (token ids), ``concurrency`` at a time."""
        slots = asyncio.Semaphore(concurrency)

        async def one(prompt: Sequence[int]) -> Completion:
            async with slots:
                return await self.generate(prompt, max_new_tokens)

        start = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(prompt)) for prompt in prompts]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        seconds = time.perf_counter() - start
        return Load(tuple(task.result() for task in tasks), seconds)

    async def generate(self, input_ids: Sequence[int], max_new_tokens: int) -> Completion:
        """The greedy continuation of exactly ``max_new_tokens`` tokens."""
        body = self._request(input_ids, max_new_tokens)
        answer = self._decode(await self._call("POST", "/generate", body), _Answer, "/generate")
        counted = answer.meta_info.completion_tokens
        if not counted == len(answer.output_ids) == max_new_tokens:
            raise ServerError(
                f"server {self.name}: asked for {max_new_tokens} tokens, got "
                f"{len(answer.output_ids)} and a count of {counted}"
            )
        meta = answer.meta_info
        return Completion(
            tuple(answer.output_ids), meta.spec_verify_ct, meta.spec_num_correct_drafts
        )

    async def top2_gap(self, input_ids: Sequence[int]) -> float:
        """Log-probability between the two likeliest next tokens after ``input_ids``."""
        body = self._request(input_ids, 1) | {"return_logprob": True, "top_logprobs_num": 2}
        raw = await self._call("POST", "/generate", body)
        rows = self._decode(raw, _Top2Answer, "/generate").meta_info.output_top_logprobs
        if not rows or len(rows[0]) < 2:
            raise ServerError(f"server {self.name}: /generate returned no top-2 log-probabilities")
        return abs(rows[0][0][0] - rows[0][1][0])

    async def internal_state(self) -> dict[str, Any]:
        """``internal_states[0]`` of ``/server_info``: live, where the top level is start-up."""
        raw = await self._call("GET", "/server_info")
        info = self._decode(raw, dict[str, Any], "/server_info")
        states = info.get("internal_states")
        if not isinstance(states, list) or not states or not isinstance(states[0], dict):
            raise ServerError(f"server {self.name}: /server_info has no internal_states")
        return states[0]

    async def set_policy(self, policy: str) -> None:
        """Switch the SpecKV policy of a running server."""
        # SGLang's request carries numbers only, so the name is in the key
        body = {"server_args": {f"speckv_policy:{policy}": 1}}
        raw = await self._call("POST", "/set_internal_state", body)
        if self._decode(raw, list[bool], "/set_internal_state") != [True]:
            raise ServerError(f"server {self.name} refused the policy {policy!r}")

    async def flush_cache(self, attempts: int = 50) -> None:
        """Forget cached prefixes. Right after a request the scheduler may still call itself
        busy, so a refusal is asked again for a while."""
        for _ in range(attempts):
            try:
                await self._call("POST", "/flush_cache")
                return
            except ServerError as error:
                last = error
                await asyncio.sleep(0.1)
        raise last

    async def ready(self) -> bool:
        """Whether the server has answered a one-token request."""
        try:
            await self._call("GET", "/health_generate")
        except ServerError:
            return False
        return True

    @staticmethod
    def _request(input_ids: Sequence[int], max_new_tokens: int) -> dict[str, Any]:
        sampling = {"temperature": 0, "max_new_tokens": max_new_tokens, "ignore_eos": True}
        return {"input_ids": list(input_ids), "sampling_params": sampling, "stream": False}

    async def _call(self, method: str, path: str, body: Any = None) -> bytes:
        try:
            async with self._session.request(method, self._url + path, json=body) as response:
                content = await _bounded_read(response.content)
                status = response.status
        except TimeoutError:
            raise ServerError(
                f"server {self.name}: no answer from {path} within {self._timeout.total:.0f} s"
            ) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise ServerError(f"server {self.name}: {path} failed ({reason[:200]})") from None
        if status != 200:
            text = content[:200].decode("utf-8", "replace").strip()
            raise ServerError(f"server {self.name}: {path} answered {status} ({text})")
        return content

    def _decode(self, raw: bytes, kind: type[_T], path: str) -> _T:
        try:
            return msgspec.json.decode(raw, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ServerError(
                f"server {self.name}: {path} answered something unexpected ({error})"
            ) from None


async def _bounded_read(stream: aiohttp.StreamReader) -> bytes:
    content = bytearray()
    async for chunk in stream.iter_chunked(1 << 16):
        content += chunk
        if len(content) > _MAX_ANSWER_BYTES:
            raise ValueError(f"the answer is over {_MAX_ANSWER_BYTES >> 20} MB")
    return bytes(content)
