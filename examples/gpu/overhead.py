"""What looking at the draft and changing depth cost on this device.

    python examples/gpu/overhead.py --out out/gpu/overhead.json
    python examples/gpu/overhead.py --draft standalone --steps 5 --batch-size 1 --batch-size 64

The tap's own work at the pair's vocabulary: its reductions captured in a graph and replayed
(device time by CUDA events), and all it does in a round as the host sees it. Both against the
round times that a real server's start-up profile measured. That server then changes depth every
few rounds, and says what a change took. On a CPU there are no events and no graph; both times are
the host's.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import typer

sys.path.insert(0, str(Path(__file__).parents[2]))

from examples.gpu.observe import OutFile, ServerFlags, Target, finish, log_path, machine, pin, run
from sglang_speckv.ab.client import Client
from sglang_speckv.ab.comparison import chat_tokenizer, default_dtype, find_drafts, server_flags
from sglang_speckv.ab.process import Server, running
from sglang_speckv.ab.prompts import DEMO_PROMPTS, in_turn, load_prompts
from sglang_speckv.demo.target import resolve_target
from sglang_speckv.progress import Screen
from sglang_speckv.srt.fuse import Fuse
from sglang_speckv.srt.reduction import reduce_logits
from sglang_speckv.srt.rounds import RoundTracker
from sglang_speckv.srt.signals import SignalTap

REPEATS = 200


class StandIn:
    """A draft worker that does nothing but hand out logits, so that only the tap has work."""

    def __init__(self, size: int, num_steps: int, vocab: int, device: str) -> None:
        logits = torch.randn(size, vocab, device=device)
        output = SimpleNamespace(next_token_logits=logits)
        self.device = device
        self.draft_runner = SimpleNamespace(forward=lambda: SimpleNamespace(logits_output=output))
        self.draft_forward = lambda: [self.draft_runner.forward() for _ in range(num_steps - 1)]
        self._draft_extend_for_decode = lambda batch: self.draft_runner.forward()
        self._draft_extend_for_prefill = self._draft_extend_for_decode


def host_seconds(size: int, num_steps: int, vocab: int, device: str) -> float:
    """Median of all that the tap and the tracker do in a round, as the launching host sees it."""
    draft = StandIn(size, num_steps, vocab, device)
    tap, tracker = SignalTap(draft, num_steps, size, size, Fuse(lambda: None)), RoundTracker()
    slots = torch.arange(size, device=device)
    batch = SimpleNamespace(req_pool_indices=slots)
    reqs = [SimpleNamespace(origin_input_ids=(), output_ids=()) for _ in range(size)]

    def one_round() -> None:
        known = tracker.next_batch(reqs)
        tap.begin_round(slots)
        draft.draft_forward()
        draft._draft_extend_for_decode(batch)
        tracker.launched(reqs, num_steps, tap.finish_round(slots, num_steps), known)

    return median_seconds(one_round, device)


def device_seconds(size: int, num_steps: int, vocab: int, device: str) -> float:
    """Median of the reductions of a round on the device: one per draft position."""
    logits = torch.randn(size, vocab, device=device)
    out = torch.zeros(num_steps, size, 2, device=device)

    def reductions() -> None:
        for position in range(num_steps):
            reduce_logits(logits, out[position])

    if device == "cpu":
        return median_seconds(reductions, device)
    reductions()  # compiles the kernels
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        reductions()
    return median_event_seconds(graph.replay)


def median_seconds(work: Callable[[], None], device: str) -> float:
    times = []
    for turn in range(REPEATS + 10):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
        if device != "cpu" and turn % 10 == 9:
            torch.cuda.synchronize()  # outside of what is timed: the queue must not fill up
    return statistics.median(times[10:])


def median_event_seconds(work: Callable[[], None]) -> float:
    times = []
    for _ in range(REPEATS + 10):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times[10:])


async def serve(server: Server, target: str, tokens: int) -> dict[str, Any]:
    """The server's own state after decoding while the depth was pinned anew all the time."""
    prompts = [chat_tokenizer(target)(p) for p in in_turn(load_prompts(DEMO_PROMPTS))[:4]]
    async with running([server], 900) as failures:
        if failures:
            raise failures[server.name]
        async with Client(server.name, server.url) as client:
            steps = (await client.internal_state())["speckv"]["candidate_steps"]

            async def shuffle() -> None:
                while True:
                    for depth in steps:
                        await pin(client, depth)
                        await asyncio.sleep(0.02)

            shuffling = asyncio.create_task(shuffle())
            await asyncio.gather(*(client.generate(ids, tokens) for ids in prompts))
            shuffling.cancel()
            return (await client.internal_state())["speckv"]


def tap_rows(
    sizes: Sequence[int],
    num_steps: int,
    vocab: int,
    profile: Sequence[Sequence[float]],
    device: str,
) -> list[dict[str, Any]]:
    """Per batch size: the tap's times in ms, and as shares of a round where one was profiled;
    ``profile`` has [batch size, num_steps, ms]."""
    rounds = {size: ms for size, steps, ms in profile if steps == num_steps}
    rows = []
    for size in sizes:
        host = 1e3 * host_seconds(size, num_steps, vocab, device)
        work = 1e3 * device_seconds(size, num_steps, vocab, device)
        row = {"batch_size": size, "host_ms": round(host, 4), "device_ms": round(work, 4)}
        if size in rounds:
            row |= {
                "round_ms": rounds[size],
                "host_share": round(host / rounds[size], 5),
                "device_share": round(work / rounds[size], 5),
            }
        rows.append(row)
    return rows


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    draft: Annotated[str, typer.Option(help="eagle3, standalone or a folder.")] = "eagle3",
    target: Target = None,
    steps: Annotated[int, typer.Option(help="Depth of the rounds that are compared.")] = 3,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="Repeatable; the profile has 1, 4, 16 and 64.")
    ] = None,
    vocab: Annotated[int | None, typer.Option(help="[default: the draft's]")] = None,
    tokens: Annotated[
        int, typer.Option(help="Output length of the four requests whose depth changes.")
    ] = 512,
    server_flag: ServerFlags = None,
    out: OutFile = None,
) -> None:
    """Measure the tap and the switches; the last line is one JSON object."""
    screen = Screen()
    sizes = sorted(set(batch_size or (1, 4, 16, 64)))
    found = str(resolve_target(target))
    pair = find_drafts([draft], found, screen)[0]
    flags = [
        *("--model-path", found),
        *pair.flags,
        *("--speckv-policy", f"static:{steps}", "--speckv-profile", "60"),
        *server_flags(max(sizes), default_dtype()),
        *(server_flag or ()),
    ]
    with tempfile.TemporaryDirectory() as scratch:
        screen.say(f"serving {pair.name}")
        server = Server(pair.name, flags, log_path(out, pair.name, Path(scratch)))
        shown = asyncio.run(serve(server, found, tokens))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    screen.say("timing the tap")
    words = vocab or draft_vocab(Path(pair.path))
    result = {
        "draft": pair.name,
        "num_steps": steps,
        "draft_vocab_size": words,
        "tap": tap_rows(sizes, steps, words, shown["profile"], device),
        "switches": shown["switches"],
        "switch_microseconds": round(shown["switch_microseconds"], 2),
        "decision_microseconds": round(shown["decision_microseconds"], 2),
        "provenance": machine(),
    }
    finish(result, out)


def draft_vocab(folder: Path) -> int:
    """Of the distribution that the draft draws from."""
    import msgspec

    config = msgspec.json.decode((folder / "config.json").read_bytes())
    return config.get("draft_vocab_size") or config["vocab_size"]


if __name__ == "__main__":
    run(app, "overhead")
