"""Record a trace of the demo pair, good for `speckv train` and for the round times of a replay.

    python examples/record_traces.py --draft eagle3 --out traces/eagle3
    speckv replay mine.safetensors --cost traces/eagle3
    speckv train traces/eagle3 -o artifact.safetensors

First some rounds of every depth at each load, for the round times. Then every prompt once at the
deepest step count, several at a time: what was accepted of 7 drafts says what every shallower depth
would have brought. About four minutes on two idle cores; of any other pair with --target and
--draft DIRECTORY.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sglang_speckv.ab.client import Client
from sglang_speckv.ab.comparison import chat_tokenizer, default_dtype, find_drafts, server_flags
from sglang_speckv.ab.load import request_id
from sglang_speckv.ab.process import Server, running
from sglang_speckv.ab.prompts import DEMO_PROMPTS, in_turn, load_prompts
from sglang_speckv.ab.request import Prompt
from sglang_speckv.config import DEFAULT_CANDIDATE_STEPS, ConfigError
from sglang_speckv.demo.target import resolve_target
from sglang_speckv.progress import Screen

DEEPEST = DEFAULT_CANDIDATE_STEPS[-1]
TIMED_TOKENS = 12
PASSES = 2
"""Over all depths at each load: what drifts meanwhile does not look like a depth's doing."""


async def record(
    server: Server, prompts: Sequence[Prompt], target: str, tokens: int, loads: Sequence[int]
) -> None:
    tokenize, screen = chat_tokenizer(target), Screen()
    async with running([server], 600) as failures:
        if failures:
            raise failures[server.name]
        async with Client(server.name, server.url) as client:

            async def together(batch: Sequence[Prompt], at_a_time: int, length: int) -> None:
                slots = asyncio.Semaphore(at_a_time)

                async def one(prompt: Prompt) -> None:
                    async with slots:
                        await client.generate(tokenize(prompt), length, request_id(prompt))

                async with asyncio.TaskGroup() as group:
                    for prompt in batch:
                        group.create_task(one(prompt))

            for load in [*loads] * PASSES:
                screen.say(f"every depth, {load} at a time")
                for depth in DEFAULT_CANDIDATE_STEPS:
                    await client.set_policy(f"static:{depth}")
                    await together(prompts[:load], load, TIMED_TOKENS)
            screen.say(f"{len(prompts)} prompts at depth {DEEPEST}, {max(loads)} at a time")
            await client.set_policy(f"static:{DEEPEST}")
            await together(prompts, max(loads), tokens)
            await asyncio.sleep(1.5)  # the trace is flushed every second


def main(
    draft: Annotated[str, typer.Option(help="eagle3, standalone or a directory.")],
    out: Annotated[Path, typer.Option(help="Folder for the trace.")],
    target: Annotated[str | None, typer.Option(help="[default: the demo's]")] = None,
    requests: Annotated[int, typer.Option(help="Prompts asked, each once.")] = 96,
    tokens: Annotated[int, typer.Option(help="Output tokens per prompt.")] = 64,
    load: Annotated[
        list[int] | None, typer.Option(help="Requests at a time; repeatable. [default: 1, 4, 16]")
    ] = None,
) -> None:
    """Serve the pair with a trace, ask every demo prompt, time every depth."""
    loads = sorted(set(load or (1, 4, 16)))
    found = str(resolve_target(target))
    pair = find_drafts([draft], found, Screen())[0]
    flags = [
        *("--model-path", found),
        *pair.flags,
        *("--speckv", "--speckv-trace", str(out), "--speckv-policy", f"static:{DEEPEST}"),
        *("--speckv-profile", "0"),
        *server_flags(max(loads), default_dtype()),
    ]
    prompts = in_turn(load_prompts(DEMO_PROMPTS))[:requests]
    with tempfile.TemporaryDirectory() as logs:
        server = Server("record", flags, Path(logs) / "server.log")
        asyncio.run(record(server, prompts, found, tokens, loads))


if __name__ == "__main__":
    try:
        typer.run(main)
    except ConfigError as error:
        sys.exit(f"record_traces: {error}")
