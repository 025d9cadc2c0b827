"""What looking at the draft costs: the signal tap as a share of a round, and the trace.

Usage: python benchmarks/tap.py [--draft eagle3] [--blocks 6] [--out FILE]

First the tap's own work (reductions, slots, packing, host side) at the demo pair's shapes, timed
in this process and set against the round times that the real server's start-up profile measured.
Then the same requests in turn from a server that writes a trace and one that does not. Prints a
table, then one JSON line. About four minutes on two idle cores; both figures are ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from sglang_speckv.ab.client import Client
from sglang_speckv.ab.comparison import chat_tokenizer, default_dtype, find_drafts, server_flags
from sglang_speckv.ab.process import Server, running
from sglang_speckv.ab.prompts import DEMO_PROMPTS, in_turn, load_prompts
from sglang_speckv.demo.target import resolve_target
from sglang_speckv.files import write_atomically
from sglang_speckv.offline.records import read_trace, trace_files
from sglang_speckv.progress import Screen
from sglang_speckv.provenance import provenance
from sglang_speckv.srt.fuse import Fuse
from sglang_speckv.srt.rounds import RoundTracker
from sglang_speckv.srt.signals import SignalTap

STEPS = 3
SIZES = (1, 4, 16)
REQUESTS, TOKENS = 4, 48


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draft", default="eagle3")
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rounds, ratios = asyncio.run(serve(args.draft, args.blocks, Path(folder)))
        vocab = read_trace(trace_files(Path(folder) / "trace")[0])[0].draft_vocab_size
    tap_ms = {size: 1e3 * tap_seconds(size, vocab) for size in SIZES}
    result = {
        "draft": args.draft,
        "num_steps": STEPS,
        "draft_vocab_size": vocab,
        "round_ms": rounds,
        "tap_ms": {size: round(ms, 3) for size, ms in tap_ms.items()},
        "tap_share": {s: round(ms / rounds[s], 4) for s, ms in tap_ms.items() if s in rounds},
        "throughput_with_trace": round(statistics.median(ratios), 3),
        "blocks": [round(ratio, 3) for ratio in ratios],
        "provenance": provenance(),
    }
    report(result)
    if args.out:
        write_atomically(
            args.out, lambda path: path.write_text(json.dumps(result, indent=1) + "\n")
        )


# ---------------------------------------------------------------------------- the tap alone


def tap_seconds(size: int, vocab: int, repeats: int = 200) -> float:
    """Median seconds of everything the tap adds to a round of STEPS, host side included."""
    logits = torch.randn(size, vocab)
    output = SimpleNamespace(next_token_logits=logits)
    forwarded = SimpleNamespace(logits_output=output)
    runner = SimpleNamespace(forward=lambda: forwarded)
    draft = SimpleNamespace(device="cpu", draft_runner=runner)
    draft.draft_forward = lambda: [draft.draft_runner.forward() for _ in range(STEPS - 1)]
    draft._draft_extend_for_decode = lambda batch: draft.draft_runner.forward()
    draft._draft_extend_for_prefill = draft._draft_extend_for_decode
    tap, tracker = SignalTap(draft, 7, 64, 64, Fuse(lambda: None)), RoundTracker()
    slots = torch.arange(size)
    batch = SimpleNamespace(req_pool_indices=slots)
    reqs = [_Request() for _ in range(size)]
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        known = tracker.next_batch(reqs)
        tap.begin_round(slots)
        draft.draft_forward()
        draft._draft_extend_for_decode(batch)
        flying = tracker.launched(reqs, STEPS, tap.finish_round(slots, STEPS), known)
        tracker.finished(flying, [1] * size)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


class _Request:
    origin_input_ids: tuple[int, ...] = ()
    output_ids: tuple[int, ...] = ()
    is_retracted = False

    def finished(self) -> bool:
        return False


# ---------------------------------------------------------------------------- the trace


async def serve(draft: str, blocks: int, folder: Path) -> tuple[dict[int, float], list[float]]:
    """Round times in ms by batch size, and tok/s with a trace over tok/s without, per block."""
    screen = Screen()
    target = str(resolve_target(None))
    pair = find_drafts([draft], target, screen)[0]
    flags = [
        *("--model-path", target),
        *pair.flags,
        *("--speckv-policy", f"static:{STEPS}", "--speckv-candidate-steps", f"0,{STEPS}"),
        *server_flags(max(SIZES), default_dtype()),
    ]
    servers = [
        Server("plain", [*flags, "--speckv-profile", "20"], folder / "plain.log"),
        Server(
            "traced",
            [*flags, "--speckv-profile", "0", "--speckv-trace", str(folder / "trace")],
            folder / "traced.log",
        ),
    ]
    tokenize = chat_tokenizer(target)
    prompts = [tokenize(prompt) for prompt in in_turn(load_prompts(DEMO_PROMPTS))]
    async with running(servers, 600) as failures:
        if failures:
            raise next(iter(failures.values()))
        async with (
            Client("plain", servers[0].url) as plain,
            Client("traced", servers[1].url) as traced,
        ):
            rows = (await state(plain))["profile"]
            rounds = {size: ms for size, steps, ms in rows if steps == STEPS}
            ratios = []
            for block in range(blocks + 1):
                batch = [prompts[(block * REQUESTS + i) % len(prompts)] for i in range(REQUESTS)]
                seconds = {}
                for client in (plain, traced) if block % 2 else (traced, plain):
                    started = time.perf_counter()
                    await asyncio.gather(*(client.generate(ids, TOKENS) for ids in batch))
                    seconds[client] = time.perf_counter() - started
                screen.say(f"block {block}")
                ratios.append(seconds[plain] / seconds[traced])
    return rounds, ratios[1:]  # the first one warms up


async def state(client: Client) -> dict[str, Any]:
    return json.loads(await client.call("GET", "/server_info"))["internal_states"][0]["speckv"]


def report(result: dict[str, Any]) -> None:
    table = Table(
        "requests", "round ms", "tap ms", "share", title=f"{result['draft']}, {STEPS} steps"
    )
    for size, share in result["tap_share"].items():
        row = result["round_ms"][size], result["tap_ms"][size], f"{share:.2%}"
        table.add_row(str(size), *map(str, row))
    Console().print(table)
    Console().print(f"throughput with a trace: {result['throughput_with_trace']} of that without")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
