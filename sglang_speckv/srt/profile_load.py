"""The start-up profile in the launcher: dummy requests through the whole engine, after SGLang's own
warm-up and before the server calls itself ready.  :mod:`~sglang_speckv.srt.profile` is the other
half."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from sglang_speckv.srt.profile import ROUNDS, STATE_KEY

logger = logging.getLogger(__name__)

BATCH_SIZES = (1, 4, 16, 64)
PROMPT_TOKENS = 32
PASSES = 2
"""Over all sizes before the second: every load is known a little before one is known well, and a
slow minute of the machine does not meet all rounds of a size."""


class Target(Protocol):
    """The engine as the launcher reaches it, with all its data-parallel ranks."""

    def generate(self, input_ids: list[list[int]], max_new_tokens: int) -> None: ...

    def set_state(self, values: dict[str, int]) -> None: ...

    def flush(self) -> None: ...


def run(
    target: Target,
    seconds: float,
    tiers: int,
    max_running_requests: int,
    context_len: int,
    ranks: int = 1,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Profile ``target`` for at most about ``seconds``: one request first, then more at a time, on
    each of its data-parallel ``ranks``, among which SGLang divides what comes together evenly.

    Trouble here costs the profile, not the server: it is logged, and policies learn while serving.
    """
    started = clock()
    try:
        target.set_state({STATE_KEY: 1})
        try:
            deadline = started + seconds
            _walk(target, deadline, tiers, max_running_requests, context_len, ranks, clock)
        finally:
            target.set_state({STATE_KEY: 0})
            target.flush()
    except Exception as error:
        logger.warning("SpecKV: no start-up profile (%r); round times are learned later", error)
        return
    logger.info("SpecKV: profiled round times in %.1f s", clock() - started)


def _walk(
    target: Target,
    deadline: float,
    tiers: int,
    max_running_requests: int,
    context_len: int,
    ranks: int,
    clock: Callable[[], float],
) -> None:
    # Every token takes at most one round; one tier more for a draft that can sleep.
    walk = 2 * ROUNDS * (tiers + 1)
    room = context_len - PROMPT_TOKENS - 8
    per_token: dict[int, float] = {}

    def generate(size: int, tokens: int) -> None:
        before = clock()
        _generate(target, size * ranks, tokens)
        per_token[size] = (clock() - before) / tokens

    for size in PASSES * [size for size in BATCH_SIZES if size <= max_running_requests]:
        if size not in per_token:
            generate(size, min(ROUNDS, room))
        left = walk
        while left > 0:  # in parts where the first rounds of a size were slow ones
            tokens = min(left, room, int((deadline - clock()) / per_token[size]))
            if tokens < min(left, 2 * tiers):
                return
            generate(size, tokens)
            left -= tokens


def _generate(target: Target, size: int, tokens: int) -> None:
    """Prompts that share no prefix, of ids that every vocabulary has."""
    prompts = [[10 + (31 * i + 7 * j) % 200 for j in range(PROMPT_TOKENS)] for i in range(size)]
    target.generate(prompts, tokens)


class HttpTarget:
    """A server of our own, before it says that it is ready."""

    def __init__(self, url: str, api_key: str | None, verify: Any) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._verify = verify

    def generate(self, input_ids: list[list[int]], max_new_tokens: int) -> None:
        self._post(
            "/generate",
            {"input_ids": input_ids, "sampling_params": sampling_params(max_new_tokens)},
        )

    def set_state(self, values: dict[str, int]) -> None:
        _check_set(self._post("/set_internal_state", {"server_args": values}).json())

    def flush(self) -> None:
        self._post("/flush_cache", {})

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        import requests

        answer = requests.post(
            self._url + path, json=body, headers=self._headers, verify=self._verify, timeout=600
        )
        answer.raise_for_status()
        return answer


class EngineTarget:
    """An ``sglang.Engine`` in this process."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def generate(self, input_ids: list[list[int]], max_new_tokens: int) -> None:
        self._engine.generate(input_ids=input_ids, sampling_params=sampling_params(max_new_tokens))

    def set_state(self, values: dict[str, int]) -> None:
        from sglang.srt.managers.io_struct import SetInternalStateReq

        engine = self._engine
        request = SetInternalStateReq(server_args=values)
        _check_set(
            engine.loop.run_until_complete(engine.tokenizer_manager.set_internal_state(request))
        )

    def flush(self) -> None:
        self._engine.flush_cache()


def _check_set(answers: list[bool]) -> None:
    """SGLang answers for each data-parallel rank whether it took the values."""
    if not answers or not all(answers):
        raise RuntimeError(f"/set_internal_state was refused: {answers}")


def sampling_params(max_new_tokens: int) -> dict[str, Any]:
    return {"temperature": 0, "max_new_tokens": max_new_tokens, "ignore_eos": True}


def profile_engine(engine: Any) -> None:
    """Profile an ``sglang.Engine`` that serves with SpecKV."""
    _profile(EngineTarget(engine), engine.server_args)


def warm_up(original: Callable[..., Any], server_args: Any, *args: Any, **kwargs: Any) -> Any:
    """AROUND ``_wait_and_warmup``: the profile comes after SGLang's warm-up request and before
    the server is ready."""
    from sglang.srt.entrypoints import http_server

    from sglang_speckv.srt import arguments

    if not arguments.is_active(server_args):
        return original(server_args, *args, **kwargs)
    execute = kwargs.pop("execute_warmup_func", http_server._execute_server_warmup)

    def warm_up_and_profile(server_args: Any) -> Any:
        warm = execute(server_args)
        if warm:
            _profile_before_ready(server_args)
        return warm

    return original(server_args, *args, execute_warmup_func=warm_up_and_profile, **kwargs)


def _profile_before_ready(server_args: Any) -> None:
    from sglang.srt.arg_groups.serving_hook import ssl_verify_of
    from sglang.srt.entrypoints import http_server
    from sglang.srt.managers.tokenizer_manager import ServerStatus

    manager = http_server._global_state.tokenizer_manager
    ready, manager.server_status = manager.server_status, ServerStatus.Starting
    try:
        key = server_args.admin_api_key or server_args.api_key
        _profile(HttpTarget(server_args.url(), key, ssl_verify_of(server_args)), server_args)
    finally:
        manager.server_status = ready


def _profile(target: Target, server_args: Any) -> None:
    from sglang.srt.arg_groups.overrides import resolving_view

    from sglang_speckv.srt import arguments

    config = arguments.requested(server_args)
    if config is None or config.profile_seconds <= 0 or len(config.tiers) < 2:
        return
    cfg = resolving_view(server_args)
    run(
        target,
        config.profile_seconds,
        len(config.tiers),
        cfg.max_running_requests or BATCH_SIZES[-1],
        cfg.context_length or 512,
        cfg.dp_size,
    )
