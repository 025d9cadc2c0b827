"""The load client against servers that answer, die, hang and lie."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from math import inf
from typing import Any

import pytest
from aiohttp import web

from sglang_speckv.ab import client as client_module
from sglang_speckv.ab.client import Client, ServerError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def good_answer(count: int) -> dict[str, Any]:
    meta = {"completion_tokens": count, "spec_verify_ct": 2, "spec_num_correct_drafts": 3}
    return {"text": "x", "output_ids": list(range(count)), "meta_info": meta}


async def stream(request: web.Request, *answers: object) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for answer in answers:
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        await response.write(b"data: " + data + b"\n\n")
        await asyncio.sleep(0.01)
    await response.write(b"data: [DONE]\n\n")
    return response


@asynccontextmanager
async def serving(handler: Handler, timeout_s: float = 5) -> AsyncIterator[Client]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    try:
        async with Client("s", f"http://127.0.0.1:{port}", timeout_s) as client:
            yield client
    finally:
        await runner.cleanup()


def run(handler: Handler, use: Callable[[Client], Awaitable[Any]], timeout_s: float = 5) -> Any:
    async def main() -> Any:
        async with serving(handler, timeout_s) as client:
            return await use(client)

    return asyncio.run(main())


def test_a_streamed_answer_is_counted_by_the_engine_and_timed():
    async def handler(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        assert body["stream"] and body["rid"] == "code:c1:x"
        sampling = body["sampling_params"]
        assert sampling == {"temperature": 0.5, "max_new_tokens": 3, "ignore_eos": True}
        return await stream(request, good_answer(1), good_answer(2), good_answer(3))

    done = run(handler, lambda client: client.generate([1], 3, "code:c1:x", 0.5))
    assert (done.output_ids, done.tokens) == ((0, 1, 2), 3)
    assert (done.verify_ct, done.num_correct_drafts) == (2, 3)
    assert [tokens for _, tokens in done.arrived] == [1, 2, 3]
    assert 0 < done.ttft_s < done.arrived[-1][0] <= done.e2e_s
    assert done.tpot_s == pytest.approx((done.e2e_s - done.ttft_s) / 2)


def test_an_error_inside_the_stream_is_shown():
    async def handler(request: web.Request) -> web.StreamResponse:
        return await stream(request, {"error": {"message": "the prompt is too long"}})

    with pytest.raises(ServerError, match="the prompt is too long"):
        run(handler, lambda client: client.generate([1], 4))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"not json", "something unexpected"),
        (b'{"output_ids": [1, "two"], "meta_info": {"completion_tokens": 2}}', "unexpected"),
        (b'{"text": "no ids"}', "unexpected"),
        (b"\xff\xfe\x00", "unexpected"),
        (
            b'{"output_ids": [1], "meta_info": {"completion_tokens": 1}}',
            "asked for 4 tokens, got 1",
        ),
    ],
)
def test_nonsense_is_one_clear_error(answer: bytes, message: str):
    async def handler(request: web.Request) -> web.StreamResponse:
        return await stream(request, answer)

    with pytest.raises(ServerError, match=message):
        run(handler, lambda client: client.generate([1], 4))


@pytest.mark.parametrize("body", [b"", b"\xff\xfe not events", b"data: {}\n\n"])
def test_an_answer_that_is_no_stream(body: bytes):
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=body)

    with pytest.raises(ServerError, match="broke off"):
        run(handler, lambda client: client.generate([1], 4))


def test_an_error_status_shows_its_text():
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=400, text="the input is too long")

    with pytest.raises(ServerError, match=r"/generate answered 400 \(the input is too long\)"):
        run(handler, lambda client: client.generate([1], 4))


def test_a_hung_server_ends_in_a_timeout():
    async def handler(request: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    with pytest.raises(ServerError, match="no answer from /generate within"):
        run(handler, lambda client: client.generate([1], 4), timeout_s=0.3)


def test_a_server_that_dies_in_mid_answer():
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'data: {"output_ids": [')
        request.transport.abort()
        return response

    with pytest.raises(ServerError, match="/generate failed"):
        run(handler, lambda client: client.generate([1], 4))


def test_an_endless_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client_module, "_MAX_ANSWER_BYTES", 1 << 20)

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" " * 65536)

    with pytest.raises(ServerError, match="the stream does not end"):
        run(handler, lambda client: client.generate([1], 4))
    with pytest.raises(ServerError, match="the answer is over 1 MB"):
        run(handler, lambda client: client.internal_state())


def test_an_endless_error_is_cut_off():
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=500)
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65536)

    with pytest.raises(ServerError, match=r"answered 500 \(x{200}\)"):
        run(handler, lambda client: client.internal_state())


def test_an_idle_connection_is_not_used_again(monkeypatch: pytest.MonkeyPatch):
    """A server that hangs up on whoever comes back on an old connection: it was about to close it.
    A sweep lost a server to that."""
    monkeypatch.setattr(client_module, "IDLE_S", 0.05)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        await reader.read(1)
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, Client("s", f"http://127.0.0.1:{port}") as client:
            assert await client.call("GET", "/") == b"{}"
            await asyncio.sleep(0.3)
            assert await client.call("GET", "/") == b"{}"

    asyncio.run(run())


def test_nobody_listens():
    async def main() -> None:
        async with Client("s", "http://127.0.0.1:9", 2) as client:
            assert not await client.ready()
            await client.generate([1], 4)

    with pytest.raises(ServerError, match="server s: /generate failed"):
        asyncio.run(main())


def test_policy_switch_and_its_refusal():
    seen = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((await request.json())["server_args"])
        return web.json_response([len(seen) == 1])

    async def use(client: Client) -> None:
        await client.set_policy("static:3")
        with pytest.raises(ServerError, match="refused the policy 'ema'"):
            await client.set_policy("ema")

    run(handler, use)
    assert seen == [{"speckv_policy:static:3": 1}, {"speckv_policy:ema": 1}]


def test_a_switch_is_one_of_every_data_parallel_rank():
    answers = iter([[True, True], [True, False], []])

    async def handler(request: web.Request) -> web.Response:
        return web.json_response(next(answers))

    async def use(client: Client) -> None:
        await client.set_policy("ema")
        for _ in range(2):
            with pytest.raises(ServerError, match="refused the policy 'ema'"):
                await client.set_policy("ema")

    run(handler, use)


def test_one_rank_is_not_taken_for_all():
    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"internal_states": [{}, {}]})

    with pytest.raises(ServerError, match="2 data-parallel ranks"):
        run(handler, lambda client: client.internal_state())


def test_flush_asks_again_while_the_scheduler_is_busy():
    answers = iter([400, 400, 200])

    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=next(answers))

    run(handler, lambda client: client.flush_cache())
    assert next(answers, None) is None


def test_flush_gives_up():
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=400, text="pending requests")

    with pytest.raises(ServerError, match="pending requests"):
        run(handler, lambda client: client.flush_cache(attempts=2))


def forced(own: object, top: object) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handler(request: web.Request) -> web.Response:
        body = await request.json()
        assert body["input_ids"] == [1, 2, 7, 8] and body["logprob_start_len"] == 1
        assert body["return_logprob"] and body["top_logprobs_num"] == 1
        meta = {"input_token_logprobs": own, "input_top_logprobs": top}
        return web.json_response({"meta_info": meta})

    return handler


OWN = [[None, 2, None], [-0.5, 7, None], [-2.0, 8, None]]
TOP = [None, [[-0.5, 7, None]], [[-0.25, 9, None]]]


def test_gaps_of_an_answer_that_is_read_back():
    found = run(forced(OWN, TOP), lambda client: client.gaps([1, 2], [7, 8]))
    assert found == [0.0, 1.75]


@pytest.mark.parametrize(
    ("own", "top"), [(OWN[:2], TOP), (OWN, TOP[:2]), ([OWN[0], OWN[2], OWN[1]], TOP), ([], [])]
)
def test_gaps_of_another_answer_are_none(own: object, top: object):
    with pytest.raises(ServerError, match="no log-probabilities"):
        run(forced(own, top), lambda client: client.gaps([1, 2], [7, 8]))


def test_a_token_without_a_log_probability_is_infinitely_unlikely():
    own = [*OWN[:2], [None, 8, None]]
    assert run(forced(own, TOP), lambda client: client.gaps([1, 2], [7, 8])) == [0.0, inf]


@pytest.mark.parametrize("info", [{}, {"internal_states": []}, {"internal_states": [3]}])
def test_server_info_without_states(info: dict[str, Any]):
    async def handler(request: web.Request) -> web.Response:
        return web.json_response(info)

    with pytest.raises(ServerError, match="no internal_states"):
        run(handler, lambda client: client.internal_state())
