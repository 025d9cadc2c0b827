"""Rounds that stop by what their own drafts say, against rounds that draft all that was decided.

    python examples/gpu/width.py --out out/gpu/width.json
    python examples/gpu/width.py --draft standalone --requests 1 --blocks 12

First one line: whether this torch, driver and device have the conditional nodes that a captured
draft graph stops with. Then one server answers the same prompts in every block with the whole chain
of its deepest depth, with SpecKV whose rounds may stop, and with SpecKV whose rounds may not, in
random order. The figures are tok/s over the whole chain's with a 95 % interval, milliseconds per
round, and drafts made and accepted per request and round. Every answer that is not the whole
chain's is read back by the target. Exit code 0: rounds do stop here, and no text is lost.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

sys.path.insert(0, str(Path(__file__).parents[2]))

from examples.gpu.blocks import Asked, answers, in_blocks
from examples.gpu.observe import OutFile, ServerFlags, Target, finish, log_path, machine, run
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
from sglang_speckv.ab.lossless import tie_gap
from sglang_speckv.ab.process import Server, running
from sglang_speckv.ab.prompts import DEMO_PROMPTS, in_turn, load_prompts
from sglang_speckv.demo.target import resolve_target
from sglang_speckv.progress import Screen
from sglang_speckv.srt.graph_stop import no_nodes, node_fails

STOPS, WHOLE = "throughput", "throughput,stop=off"
COUNTS = ("request_rounds", "drafted_tokens", "correct_drafts", "stopped_rounds")


def nodes() -> str:
    """One line on conditional nodes."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__}, no CUDA device: on the CPU engine the host stops rounds"
    problem = no_nodes() or node_fails("cuda")
    return f"torch {torch.__version__}, CUDA {torch.version.cuda}: " + (
        f"no conditional nodes ({problem})" if problem else "conditional nodes work"
    )


class Arms:
    """What each policy did in the blocks that count, one after another on the same server."""

    def __init__(self, client: Client, names: Sequence[str], tokens: int) -> None:
        self.names = names
        self.counts: list[Counter[str]] = [Counter() for _ in names]
        self.texts: list[list[tuple[int, ...]]] = [[] for _ in names]
        self.asked: list[Sequence[int]] = []
        self._client = client
        self._tokens = tokens
        self._allowed = tie_gap(default_dtype())

    async def turn(self, i: int, asked: Asked, counts: bool) -> float:
        """Seconds that the policy ``i`` takes."""
        await self._client.set_policy(self.names[i])
        before = (await self._client.internal_state())["speckv"]
        found, seconds = await answers(self._client, asked, self._tokens)
        after = (await self._client.internal_state())["speckv"]
        if counts:
            self.counts[i].update({name: after[name] - before[name] for name in COUNTS})
            rounds = sum(after["rounds"].values()) - sum(before["rounds"].values())
            self.counts[i].update(rounds=rounds, seconds=seconds)  # type: ignore[call-overload]
            self.texts[i] += [answer.output_ids for answer in found]
            self.asked += asked if i == 0 else []
        return seconds

    async def rows(self, sample: Sample) -> list[dict[str, Any]]:
        rows = []
        for i, name in enumerate(self.names):
            counts, over = self.counts[i], ratio([sample], i, 0)
            rounds, each = max(counts["rounds"], 1), max(counts["request_rounds"], 1)
            rows.append(
                {
                    "policy": name,
                    "tokens_per_s": round(float(sample.tokens[i].sum() / counts["seconds"]), 2),
                    "ratio": round(over.value, 4),
                    "interval": over.interval,
                    "round_ms": round(1e3 * counts["seconds"] / rounds, 3),
                    "drafts_made": round(counts["drafted_tokens"] / each, 3),
                    "drafts_accepted": round(counts["correct_drafts"] / each, 3),
                    "stopped": round(counts["stopped_rounds"] / rounds, 4),
                    **await self._text(i),
                }
            )
        return rows

    async def _text(self, i: int) -> dict[str, Any]:
        """How many answers are the whole chain's, and how many others the target would not give."""
        told = {"answers": len(self.asked), "identical": 0, "lost": 0}
        for ids, answer, whole in zip(self.asked, self.texts[i], self.texts[0], strict=True):
            if answer == whole:
                told["identical"] += 1
            elif not max(await self._client.gaps(ids, answer)) <= self._allowed:
                told["lost"] += 1
        return told


async def compare(
    server: Server,
    prompts: Asked,
    loads: Sequence[int],
    blocks: int,
    tokens: int,
    screen: Screen,
) -> dict[str, Any]:
    async with running([server], 900) as failures:
        if failures:
            raise failures[server.name]
        async with Client(server.name, server.url) as client:
            shown = (await client.internal_state())["speckv"]
            screen.say(f"rounds that stop: {shown['stops']}; widths: {shown['widths']}")
            names = [f"static:{max(shown['candidate_steps'])}", STOPS, WHOLE]
            cells = []
            for requests in loads:
                arms = Arms(client, names, tokens)
                sample = await in_blocks(
                    len(names), arms.turn, prompts, requests, blocks, tokens, screen
                )
                rows = await arms.rows(sample)
                cells.append({"requests": requests, "blocks": blocks, "policies": rows})
            shown = (await client.internal_state())["speckv"]
    told = {key: shown[key] for key in ("stops", "widths", "candidate_steps", "failures")}
    return {**told, "cells": cells}


def holds(result: dict[str, Any]) -> bool:
    """Rounds do stop, and no text is lost."""
    rows = [row for cell in result["cells"] for row in cell["policies"]]
    stopped = any(row["stopped"] > 0 for row in rows if row["policy"] == STOPS)
    return stopped and result["stops"] == "on" and not any(row["lost"] for row in rows)


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    draft: Annotated[str, typer.Option(help="eagle3, standalone or a folder.")] = "eagle3",
    target: Target = None,
    requests: Annotated[
        list[int] | None, typer.Option(help="At a time; repeatable. [default: 1, 2 and 4]")
    ] = None,
    blocks: Annotated[int, typer.Option(help="That count, at each number of requests.")] = 8,
    tokens: Annotated[int, typer.Option(help="Output length of every request.")] = 256,
    server_flag: ServerFlags = None,
    out: OutFile = None,
) -> None:
    """Compare rounds that stop with whole ones; the last line is one JSON object."""
    screen = Screen()
    told = {"nodes": nodes()}
    screen.say(told["nodes"])
    loads = sorted(set(requests or (1, 2, 4)))
    found = str(resolve_target(target))
    pair = find_drafts([draft], found, screen)[0]
    asked, tokenize = in_turn(load_prompts(DEMO_PROMPTS)), chat_tokenizer(found)
    longest = longest_prompt(asked, tokenize, tokens, context_len(found))
    flags = [
        *("--model-path", found),
        *pair.flags,
        "--speckv",
        *server_flags(max(loads), default_dtype(), kv_tokens(max(loads), longest + tokens)),
        *(server_flag or ()),
    ]
    with tempfile.TemporaryDirectory() as scratch:
        server = Server(pair.name, flags, log_path(out, pair.name, Path(scratch)))
        screen.say(f"starting {pair.name}")
        ids = [tokenize(prompt) for prompt in asked]
        result = asyncio.run(compare(server, ids, loads, blocks, tokens, screen))
    told |= {"draft": pair.name, "max_new_tokens": tokens, **result}
    finish({"ok": holds(told), **told, "provenance": machine()}, out)
    raise typer.Exit(0 if holds(told) else 1)


if __name__ == "__main__":
    run(app, "width")
