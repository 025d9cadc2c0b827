"""One SGLang server over its native HTTP interface: requests and the few control calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from math import inf
from typing import Any

import msgspec

from sglang_speckv.ab.connection import Connection, ServerError
from sglang_speckv.ab.load import Completion

__all__ = ["Client", "ServerError"]


class _MetaInfo(msgspec.Struct):
    completion_tokens: int
    spec_verify_ct: int = 0
    spec_num_correct_drafts: int = 0


class _Event(msgspec.Struct):
    meta_info: _MetaInfo


class _Answer(_Event):
    output_ids: list[int]


_Logprob = tuple[float | None, int, Any]


class _ForcedMeta(msgspec.Struct):
    """(log-probability, token, text) of each token and of the likeliest in its place; those of the
    token that they start from are None."""

    input_token_logprobs: list[_Logprob]
    input_top_logprobs: list[list[_Logprob] | None]


class _ForcedAnswer(msgspec.Struct):
    meta_info: _ForcedMeta


class Client(Connection):
    """Speaks to one SGLang server; use as an async context manager."""

    async def generate(
        self,
        input_ids: Sequence[int],
        max_new_tokens: int,
        request_id: str | None = None,
        temperature: float = 0.0,
    ) -> Completion:
        """The continuation of exactly ``max_new_tokens`` tokens, streamed."""
        body = self._request_body(input_ids, max_new_tokens, temperature) | {"stream": True}
        if request_id is not None:
            body["rid"] = request_id
        start = time.perf_counter()
        events = [
            (time.perf_counter() - start, event) async for event in self.events("/generate", body)
        ]
        e2e_s = time.perf_counter() - start
        answer = self._decode_answer(events[-1][1] if events else b"")
        counted = answer.meta_info.completion_tokens
        if not counted == len(answer.output_ids) == max_new_tokens:
            raise ServerError(
                f"server {self.name}: asked for {max_new_tokens} tokens, got "
                f"{len(answer.output_ids)} and a count of {counted}"
            )
        return Completion(
            tuple(answer.output_ids),
            answer.meta_info.spec_verify_ct,
            answer.meta_info.spec_num_correct_drafts,
            counted,
            e2e_s,
            events[0][0],
            arrived=tuple((s, self._tokens_by(event)) for s, event in events),
        )

    async def gaps(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        """By how much the log-probability of each token of ``answer`` is below that of the
        likeliest token at its place, read in one prefill of ``prompt`` and ``answer``."""
        body = self._request_body([*prompt, *answer], 1)
        body |= {"return_logprob": True, "top_logprobs_num": 1}
        body["logprob_start_len"] = len(prompt) - 1
        raw = await self.call("POST", "/generate", body)
        told = self.decode(raw, _ForcedAnswer, "/generate").meta_info
        own, top = told.input_token_logprobs[1:], told.input_top_logprobs[1:]
        best = [row[0][0] if row else None for row in top]
        values = [value for value, *_ in own]
        if [token for _, token, _ in own] != list(answer) or len(top) != len(own):
            raise ServerError(f"server {self.name}: /generate returned no log-probabilities")
        pairs = zip(best, values, strict=True)
        return [inf if b is None or value is None else b - value for b, value in pairs]

    async def internal_state(self) -> dict[str, Any]:
        """``internal_states[0]`` of ``/server_info``: live, where the top level is start-up.

        Raises:
            ServerError: there is none, or one for each of several data-parallel ranks, of which one
                would be taken for all.
        """
        raw = await self.call("GET", "/server_info")
        info = self.decode(raw, dict[str, Any], "/server_info")
        states = info.get("internal_states")
        if not isinstance(states, list) or not states or not isinstance(states[0], dict):
            raise ServerError(f"server {self.name}: /server_info has no internal_states")
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
        """Change an internal state of a running server, on all of its data-parallel ranks; ``what``
        names it where one refuses."""
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

    def _decode_answer(self, event: bytes) -> _Answer:
        """The last event has everything; one with ``error`` has the server's own sentence."""
        if event.startswith(b'{"error"'):
            text = event[:300].decode("utf-8", "replace")
            raise ServerError(f"server {self.name}: /generate failed ({text})")
        return self.decode(event, _Answer, "/generate")

    def _tokens_by(self, event: bytes) -> int:
        return self.decode(event, _Event, "/generate").meta_info.completion_tokens

    @staticmethod
    def _request_body(
        input_ids: Sequence[int], max_new_tokens: int, temperature: float = 0.0
    ) -> dict[str, Any]:
        sampling = {
            "temperature": temperature,
            "max_new_tokens": max_new_tokens,
            "ignore_eos": True,
        }
        return {"input_ids": list(input_ids), "sampling_params": sampling, "stream": False}
