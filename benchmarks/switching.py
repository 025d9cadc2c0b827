"""What a change of depth costs in the real engine, and whether anything grows with it.

Usage: python benchmarks/switching.py [--switches 1000]

Serves a tiny random pair on this machine, pins another depth every few rounds while it decodes,
and reads the scheduler's own clock from /server_info. Prints a table, then one JSON line. Bars:
a switch at most 20 microseconds, the scheduler's memory flat. Serving itself takes memory, so the
same requests with the depth pinned as often, but always to the same one, come first: what they add
is not the switches'.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.engine.conftest import PROMPTS, Serving, serving
from tests.engine.tiny_models import tiny_llama

STEPS = (0, 3, 1, 5)
QUARTERS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--switches", type=int, default=1000)
    wanted = parser.parse_args().switches
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        target = str(tiny_llama(root / "target"))
        flags = ["--model-path", target, "--speculative-algorithm", "STANDALONE"]
        flags += ["--speculative-draft-model-path", target, "--speckv"]
        flags += ["--speckv-candidate-steps", ",".join(map(str, sorted(STEPS)))]
        print("starting a server", file=sys.stderr)
        with serving(root, *flags) as server:
            pins(server, 200, STEPS)  # first-use effects
            start = measure(server)
            pins(server, wanted, STEPS[1:2])
            seen = [measure(server)]
            for _ in range(QUARTERS):
                pins(server, wanted // QUARTERS, STEPS)
                seen.append(measure(server))
    report(start, seen)


def pins(server: Serving, count: int, steps: tuple[int, ...]) -> None:
    """Decode without a pause while the depth is pinned ``count`` times, to ``steps`` in turn."""
    done = threading.Event()

    def decode() -> None:
        while not done.is_set():
            server.generate(PROMPTS, max_new_tokens=256)

    decoding = threading.Thread(target=decode)
    decoding.start()
    for turn in range(count):
        server.pin(steps[turn % len(steps)])
    done.set()
    decoding.join()


def measure(server: Serving) -> dict[str, Any]:
    shown = server.speckv()
    ours = psutil.Process().children(recursive=True)
    scheduler = next(process for process in ours if "sglang::scheduler" in _title(process))
    return {
        "switches": shown["switches"],
        "seconds": shown["switches"] * shown["switch_microseconds"] / 1e6,
        "scheduler_mib": scheduler.memory_info().rss / 2**20,
    }


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def report(start: dict[str, Any], seen: list[dict[str, Any]]) -> None:
    """``seen``: before the switches and after each quarter of them."""
    before, after = seen[0], seen[-1]
    switches = after["switches"] - before["switches"]
    if not switches:
        raise SystemExit("no switch happened: raise --switches")
    memory = [round(one["scheduler_mib"] - before["scheduler_mib"], 1) for one in seen[1:]]
    result = {
        "switches": switches,
        "microseconds_per_switch": round(
            1e6 * (after["seconds"] - before["seconds"]) / switches, 2
        ),
        "scheduler_growth_mib_after_each_quarter": memory,
        "switches_in_control": before["switches"] - start["switches"],
        "scheduler_growth_mib_in_control": round(
            before["scheduler_mib"] - start["scheduler_mib"], 1
        ),
    }
    table = Table("switching tiers", "measured")
    for key, value in result.items():
        table.add_row(key.replace("_", " "), str(value))
    Console().print(table)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
