"""Which attention backend serves faster, at one fixed depth, with SpecKV and without.

    python examples/gpu/attention.py --out out/gpu/attention.json
    python examples/gpu/attention.py --backend fa3 --backend flashinfer --requests 1 --blocks 12

SpecKV makes FlashInfer the default on CUDA, where SGLang would take FA3 on Hopper. Here each
backend serves twice, without SpecKV and with it, at the same depth. In every block all servers
answer the same prompts, one after the other in random order. A figure is tok/s over that of the
first backend without SpecKV, with a 95 % interval; whole blocks are timed, prefill included.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).parents[2]))

from examples.gpu.blocks import Asked, answers, in_blocks
from examples.gpu.observe import OutFile, Target, finish, log_path, machine, run
from sglang_speckv.ab.client import Client
from sglang_speckv.ab.comparison import (
    chat_tokenizer,
    context_len,
    default_dtype,
    find_drafts,
    kv_tokens,
    longest_prompt,
    server_flags,
)
from sglang_speckv.ab.intervals import Sample, ratio
from sglang_speckv.ab.process import Server, running
from sglang_speckv.ab.prompts import DEMO_PROMPTS, in_turn, load_prompts
from sglang_speckv.demo.target import resolve_target
from sglang_speckv.progress import Screen

BACKENDS = ("fa3", "flashinfer", "triton")


def arms(backends: Sequence[str], steps: int) -> dict[str, list[str]]:
    """Flags by name."""
    chain = ["--speculative-num-steps", str(steps), "--speculative-eagle-topk", "1"]
    chain += ["--speculative-num-draft-tokens", str(steps + 1)]
    speckv = ["--speckv", "--speckv-policy", f"static:{steps}", "--speckv-profile", "0"]
    found = {}
    for backend in backends:
        found[backend] = ["--attention-backend", backend, *chain]
        found[f"{backend} with SpecKV"] = ["--attention-backend", backend, *speckv]
    return found


async def measure(
    clients: Sequence[Client],
    prompts: Asked,
    requests: int,
    blocks: int,
    tokens: int,
    screen: Screen,
) -> Sample:
    async def turn(i: int, asked: Asked, counts: bool) -> float:
        _, seconds = await answers(clients[i], asked, tokens)
        return seconds

    return await in_blocks(len(clients), turn, prompts, requests, blocks, tokens, screen)


def rows_of(names: Sequence[str], sample: Sample) -> list[dict[str, Any]]:
    rates = sample.tokens.sum(axis=1) / sample.seconds.sum(axis=1)
    rows = []
    for i, name in enumerate(names):
        over = ratio([sample], i, 0)
        row = {"server": name, "tokens_per_s": round(float(rates[i]), 2)}
        rows.append(row | {"ratio": round(over.value, 4), "interval": over.interval})
    return rows


async def compare(
    servers: Sequence[Server],
    prompts: Asked,
    loads: Sequence[int],
    blocks: int,
    tokens: int,
    screen: Screen,
) -> dict[str, Any]:
    """A server that does not start is told and left out."""
    async with running(servers, 900) as failures:
        up = [server for server in servers if server.name not in failures]
        if servers[0].name in failures:
            raise failures[servers[0].name]
        cells = []
        async with AsyncExitStack() as stack:
            opened = (Client(server.name, server.url) for server in up)
            clients = [await stack.enter_async_context(client) for client in opened]
            for requests in loads:
                sample = await measure(clients, prompts, requests, blocks, tokens, screen)
                rows = rows_of([server.name for server in up], sample)
                cells.append({"requests": requests, "blocks": blocks, "servers": rows})
    return {"cells": cells, "failed": {name: str(error) for name, error in failures.items()}}


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    backend: Annotated[
        list[str] | None, typer.Option(help="Repeatable. [default: fa3, flashinfer, triton]")
    ] = None,
    draft: Annotated[str, typer.Option(help="eagle3, standalone or a folder.")] = "eagle3",
    target: Target = None,
    steps: Annotated[int, typer.Option(help="The depth of all servers.")] = 3,
    requests: Annotated[
        list[int] | None, typer.Option(help="At a time; repeatable. [default: 1 and 16]")
    ] = None,
    blocks: Annotated[int, typer.Option(help="That count, at each number of requests.")] = 8,
    tokens: Annotated[int, typer.Option(help="Output length of every request.")] = 256,
    out: OutFile = None,
) -> None:
    """Compare attention backends; the last line is one JSON object."""
    screen = Screen()
    loads = sorted(set(requests or (1, 16)))
    found = str(resolve_target(target))
    pair = find_drafts([draft], found, screen)[0]
    asked, tokenize = in_turn(load_prompts(DEMO_PROMPTS)), chat_tokenizer(found)
    longest = longest_prompt(asked, tokenize, tokens, context_len(found))
    common = [
        *("--model-path", found),
        *pair.flags,
        *server_flags(max(loads), default_dtype(), kv_tokens(max(loads), longest + tokens)),
    ]
    with tempfile.TemporaryDirectory() as scratch:
        servers = [
            Server(name, [*common, *flags], log_path(out, name.replace(" ", "-"), Path(scratch)))
            for name, flags in arms(backend or BACKENDS, steps).items()
        ]
        screen.say(f"starting {len(servers)} servers")
        ids = [tokenize(prompt) for prompt in asked]
        result = asyncio.run(compare(servers, ids, loads, blocks, tokens, screen))
    told = {"draft": pair.name, "num_steps": steps, "max_new_tokens": tokens}
    finish({**told, **result, "provenance": machine()}, out)


if __name__ == "__main__":
    run(app, "attention")
