"""Does SpecKV work on this machine? Doctor, then both demo pairs served for a minute each.

    python examples/gpu/smoke.py --out out/gpu/smoke.json
    python examples/gpu/smoke.py --draft eagle3 --target path/to/SmolLM2-135M-Instruct
    python examples/gpu/smoke.py --server-flag=--attention-backend --server-flag=triton

Exit code 0: every check holds for every draft. The target comes from PyPI, or from --target.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).parents[2]))

from examples.gpu.observe import (
    OutFile,
    ServerFlags,
    Target,
    as_told,
    finish,
    log_path,
    machine,
    memory_of,
    pin,
    run,
    signal_ages,
    tier_memory,
)
from sglang_speckv.ab.arms import Draft
from sglang_speckv.ab.client import Client, ServerError
from sglang_speckv.ab.comparison import chat_tokenizer, default_dtype, find_drafts, server_flags
from sglang_speckv.ab.process import COMMAND, Server, running
from sglang_speckv.ab.prompts import DEMO_PROMPTS, in_turn, load_prompts
from sglang_speckv.demo.target import resolve_target
from sglang_speckv.files import write_json
from sglang_speckv.offline.records import Record, read_trace, trace_files
from sglang_speckv.progress import Screen

REQUESTS, TOKENS = 4, 48


def flags_for(target: str, draft: Draft, trace: Path, more: Sequence[str]) -> list[str]:
    return [
        *("--model-path", target),
        *draft.flags,
        *("--speckv", "--speckv-trace", str(trace)),
        *server_flags(8, default_dtype()),
        *more,
    ]


def doctor(flags: Sequence[str]) -> dict[str, Any]:
    """What `speckv doctor` says of these flags."""
    command = [*COMMAND[:-1], "doctor", "--json", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    lines = done.stdout.strip().splitlines()
    if not lines:
        return {"adaptive": False, "problem": done.stderr.strip()[-300:]}
    return json.loads(lines[-1])


async def serve(server: Server, target: str) -> dict[str, Any]:
    """A few requests at every pinned depth, then some for the policy; the state afterwards."""
    tokenize = chat_tokenizer(target)
    prompts = [tokenize(p) for p in in_turn(load_prompts(DEMO_PROMPTS))[:REQUESTS]]
    async with running([server], 900) as failures:
        if failures:
            raise failures[server.name]
        async with Client(server.name, server.url) as client:

            async def ask(tokens: int) -> None:
                await asyncio.gather(*(client.generate(ids, tokens) for ids in prompts))

            state = await client.internal_state()
            for depth in state["speckv"]["candidate_steps"]:
                await pin(client, depth)
                await ask(TOKENS)
            await pin(client, -1)
            await ask(2 * TOKENS)
            await asyncio.sleep(1.5)  # the trace is flushed every second
            return await client.internal_state()


def checks(state: dict[str, Any], records: Sequence[Record]) -> dict[str, bool]:
    """What has to hold, by name."""
    shown = state.get("speckv") or {}
    rounds = shown.get("rounds", {})
    drafted = [record for record in records if record.num_steps]
    lag = shown.get("signal_lag", {}).get("rounds", 0)
    return {
        "active": bool(shown.get("active")),
        "no_fallback": shown.get("fallbacks") == 0,
        "every_depth_served": bool(rounds) and all(rounds.values()),
        "switched": shown.get("switches", 0) >= len(rounds) - 1 > 0,
        "profiled": bool(shown.get("profile")),
        "signals_are_probabilities": bool(drafted)
        and all(0 < p <= 1 for record in drafted for p in record.top1_prob),
        "signal_lag_is_as_told": as_told(signal_ages(records), lag),
        "drafts_were_accepted": shown.get("correct_drafts", 0) > 0,
    }


def try_draft(
    target: str, draft: Draft, more: Sequence[str], screen: Screen, out: Path | None
) -> dict[str, Any]:
    """Doctor, serving and checks of one pair."""
    with tempfile.TemporaryDirectory() as scratch:
        trace, log = Path(scratch) / "trace", log_path(out, draft.name, Path(scratch))
        flags = flags_for(target, draft, trace, more)
        screen.say(f"{draft.name}: speckv doctor")
        told = doctor(flags)
        if not told["adaptive"]:
            screen.say(f"{draft.name}: FAIL doctor: {told['problem']}")
            return {"doctor": told, "checks": {"doctor": False}}
        screen.say(f"{draft.name}: serving")
        server = Server(draft.name, flags, log)
        try:
            state = asyncio.run(serve(server, target))
        except ServerError as error:
            screen.say(f"{draft.name}: FAIL served: {error}")
            return {"doctor": told, "checks": {"served": False}, "problem": str(error)}
        records = list(read_trace(trace_files(trace)[0])[1])
        found = {"doctor": True, **checks(state, records)}
        for name, holds in found.items():
            screen.say(f"{draft.name}: {'ok  ' if holds else 'FAIL'} {name}")
        return {
            "doctor": told,
            "checks": found,
            "ready_s": round(server.ready_s or 0.0, 1),
            "attention_backend": state.get("attention_backend"),
            "signal_lag": state["speckv"]["signal_lag"],
            "signal_ages": dict(signal_ages(records)),
            "rounds": state["speckv"]["rounds"],
            "switches": state["speckv"]["switches"],
            "switch_microseconds": round(state["speckv"]["switch_microseconds"], 2),
            "memory_gb": memory_of(state),
            "tier_memory_gb": tier_memory(log.read_text(errors="replace")),
        }


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    target: Target = None,
    draft: Annotated[
        list[str] | None, typer.Option(help="eagle3, standalone or a folder; repeatable.")
    ] = None,
    server_flag: ServerFlags = None,
    out: OutFile = None,
) -> None:
    """Serve the demo pairs and check what can be seen; the last line is one JSON object."""
    screen = Screen()
    found = str(resolve_target(target))
    pairs = find_drafts(draft or (), found, screen)
    result: dict[str, Any] = {"ok": True, "drafts": {}, "provenance": machine()}
    for pair in pairs:
        tried = try_draft(found, pair, server_flag or (), screen, out)
        result["drafts"][pair.name] = tried
        result["ok"] &= all(tried["checks"].values())
        if out is not None:
            write_json(out, result)
    finish(result, None)
    raise typer.Exit(0 if result["ok"] else 1)


if __name__ == "__main__":
    run(app, "smoke")
