"""A server elsewhere, as an arm."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from aiohttp import web

from sglang_speckv.ab.client import ServerError
from sglang_speckv.ab.openai_client import OpenAIClient
from sglang_speckv.ab.request import Completion, Prompt

PROMPT = Prompt("p", "code", "hello")


async def chatting(
    app: web.Application, path: str = "/v1", flush: bool = False
) -> tuple[Completion, OpenAIClient]:
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    try:
        async with OpenAIClient("url:other", f"http://127.0.0.1:{port}{path}", 5, flush) as client:
            await client.find_model()
            await client.flush_cache()
            return await client.chat(PROMPT, 64), client
    finally:
        await runner.cleanup()


TWO = ({"content": "a"},) * 2


def app(
    tokens: int | None = 7,
    models: object = None,
    key: str = "",
    deltas: Sequence[dict[str, str | None]] = TWO,
) -> web.Application:
    """Streams ``deltas``, each a while after the one before, and counts ``tokens``. With ``key``,
    one that answers only who has it."""

    @web.middleware
    async def keyed(request: web.Request, handler: Any) -> web.StreamResponse:
        application["paths"].append(request.path)
        if key and request.headers.get("Authorization") != f"Bearer {key}":
            return web.json_response({"error": {"message": "no key"}}, status=401)
        return await handler(request)

    async def list_models(request: web.Request) -> web.Response:
        return web.json_response(
            {"object": "list", "data": [{"id": "m"}]} if models is None else models
        )

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        assert body["model"] == "m" and body["messages"] == PROMPT.chat()
        assert body["ignore_eos"] is True and body["max_tokens"] == 64
        response = web.StreamResponse()
        await response.prepare(request)
        chunks = [{"choices": [{"delta": delta}], "usage": None} for delta in deltas]
        if tokens is not None:
            chunks.append({"choices": [], "usage": {"completion_tokens": tokens}})
        for chunk in chunks:
            await response.write(f"data: {json.dumps(chunk)}\r\n\r\n".encode())
            await asyncio.sleep(0.03)
        await response.write(b"data: [DONE]\n\n")
        return response

    async def flush(request: web.Request) -> web.Response:
        return web.Response()

    application = web.Application(middlewares=[keyed])
    application["paths"] = []
    application.router.add_post("/reset_prefix_cache", flush)
    application.router.add_get("/v1/models", list_models)
    application.router.add_post("/v1/chat/completions", chat)
    return application


@pytest.mark.parametrize("path", ["", "/", "/v1"])
def test_tokens_are_the_servers_count(path: str):
    done, client = asyncio.run(chatting(app(), path))
    assert (done.tokens, done.output_ids, client.model) == (7, (), "m")
    assert 0 < done.ttft_s < done.e2e_s
    assert [tokens for _, tokens in done.arrived] == [4, 7]  # half of the text, all of it


def test_a_server_that_does_not_count_is_no_arm():
    with pytest.raises(ServerError, match="does not count tokens"):
        asyncio.run(chatting(app(None)))


ROLE = {"role": "assistant", "content": ""}


def test_the_first_token_comes_with_the_first_text_not_with_the_role():
    late, _ = asyncio.run(chatting(app(deltas=(ROLE, *TWO, {"content": None}))))
    assert late.ttft_s > 0.025
    assert [tokens for _, tokens in late.arrived] == [4, 7]


def test_reasoning_is_text():
    thinking = ({"reasoning_content": "a"}, {"reasoning": "a", "content": None}, *TWO)
    done, _ = asyncio.run(chatting(app(16, deltas=thinking)))
    assert [tokens for _, tokens in done.arrived] == [4, 8, 12, 16]


@pytest.mark.parametrize("deltas", [(ROLE, {"content": "aa"}, {}), (ROLE, {})])
def test_a_server_that_does_not_stream_is_no_arm(deltas: Sequence[dict[str, str | None]]):
    """Its whole answer would be measured as one instant: 256,000 tok/s of a window."""
    with pytest.raises(ServerError, match="server url:other does not stream its answers"):
        asyncio.run(chatting(app(64, deltas=deltas)))


def test_tokens_without_text_are_pieces_too():
    """Past the end of the text, under ignore_eos, a server may send many that show nothing."""
    done, _ = asyncio.run(chatting(app(64, deltas=(ROLE, {"content": "Yes"}, *[{}] * 20))))
    assert done.tokens == 64


def test_a_short_answer_may_be_one_chunk():
    done, _ = asyncio.run(chatting(app(5, deltas=TWO[:1])))
    assert (done.tokens, len(done.arrived)) == (5, 1)


def test_more_tokens_than_asked_for_are_refused():
    with pytest.raises(ServerError, match="counts 65 tokens where 64 were asked for"):
        asyncio.run(chatting(app(65)))


@pytest.mark.parametrize("models", [{"data": []}, {"models": []}, []])
def test_a_server_without_models(models: object):
    with pytest.raises(ServerError, match="server url:other"):
        asyncio.run(chatting(app(models=models)))


@pytest.mark.parametrize("variable", ["SPECKV_API_KEY_OTHER", "OPENAI_API_KEY"])
def test_a_server_that_wants_a_key(monkeypatch: pytest.MonkeyPatch, variable: str):
    monkeypatch.setenv(variable, "secret")
    done, _ = asyncio.run(chatting(app(key="secret")))
    assert done.tokens == 7
    monkeypatch.setenv(variable, "wrong")
    with pytest.raises(ServerError, match=r"/v1/models failed.*401"):
        asyncio.run(chatting(app(key="secret")))


def test_somebodys_caches_are_emptied_only_where_that_is_asked_for():
    left, emptied = app(), app()
    asyncio.run(chatting(left))
    asyncio.run(chatting(emptied, flush=True))
    assert "/reset_prefix_cache" not in left["paths"] and "/flush_cache" not in left["paths"]
    assert "/reset_prefix_cache" in emptied["paths"]


@pytest.mark.parametrize(
    "answer", [b"", b"data: {}\n\n", b"data: [1]\n\n", b"data: garbage\n\n", b"\xff\x00"]
)
def test_an_answer_that_is_none(answer: bytes):
    async def garbage(request: web.Request) -> web.StreamResponse:
        return web.Response(body=answer, content_type="text/event-stream")

    application = web.Application()
    application.router.add_post("/v1/chat/completions", garbage)
    application.router.add_get("/v1/models", lambda request: _models())
    with pytest.raises(ServerError, match="server url:other"):
        asyncio.run(chatting(application))


async def _models() -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "m"}]})
