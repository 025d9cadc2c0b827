"""A server elsewhere, as an arm."""

import asyncio
import json

import pytest
from aiohttp import web

from sglang_speckv.bench.connection import ServerError
from sglang_speckv.bench.openai_client import OpenAIClient
from sglang_speckv.bench.prompts import Prompt

PROMPT = Prompt("p", "code", "hello")


async def chatting(app: web.Application, path: str = "/v1") -> tuple[object, OpenAIClient]:
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    try:
        async with OpenAIClient("other", f"http://127.0.0.1:{port}{path}", 5) as client:
            await client.find_model()
            await client.flush_cache()
            return await client.chat(PROMPT, 8, "code:p:1"), client
    finally:
        await runner.cleanup()


def app(usage: bool = True, models: object = None) -> web.Application:
    async def list_models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]} if models is None else models)

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        assert body["model"] == "m" and body["messages"] == PROMPT.chat()
        response = web.StreamResponse()
        await response.prepare(request)
        chunks = [{"choices": [{"delta": {"content": "a"}}], "usage": None}] * 2
        if usage:
            chunks.append({"choices": [], "usage": {"completion_tokens": 7}})
        for chunk in chunks:
            await response.write(f"data: {json.dumps(chunk)}\r\n\r\n".encode())
            await asyncio.sleep(0.01)
        await response.write(b"data: [DONE]\n\n")
        return response

    application = web.Application()
    application.router.add_get("/v1/models", list_models)
    application.router.add_post("/v1/chat/completions", chat)
    return application


@pytest.mark.parametrize("path", ["", "/", "/v1"])
def test_tokens_are_the_servers_count(path: str):
    done, client = asyncio.run(chatting(app(), path))
    assert (done.tokens, done.output_ids, client.model) == (7, (), "m")
    assert 0 < done.first_s < done.latency_s
    assert [tokens for _, tokens in done.arrived] == [4, 7]  # half of the text, all of it


def test_a_server_that_does_not_count_is_no_arm():
    with pytest.raises(ServerError, match="does not count tokens"):
        asyncio.run(chatting(app(usage=False)))


@pytest.mark.parametrize("models", [{"data": []}, {"models": []}, []])
def test_a_server_without_models(models: object):
    with pytest.raises(ServerError, match="server other"):
        asyncio.run(chatting(app(models=models)))
