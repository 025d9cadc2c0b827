"""What a change of depth costs in the real engine, and whether anything grows with it.

Usage: python benchmarks/switching.py [--switches 1000]

Serves a tiny random pair on this machine, pins another depth every few rounds while it decodes,
and reads the scheduler's own clock from /server_info. Prints a table, then one JSON line. Bars:
a switch at most 20 microseconds; the answer of /server_info (which replays SGLang's override
log) and the scheduler's memory flat.
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
            run(server, 100)  # first-use effects
            before = measure(server)
            run(server, wanted)
            after = measure(server)
    report(before, after)


def run(server: Serving, switches: int) -> None:
    """Decode without a pause while the depth is pinned anew, ``switches`` times."""
    done = threading.Event()

    def decode() -> None:
        while not done.is_set():
            server.generate(PROMPTS, max_new_tokens=256)

    decoding = threading.Thread(target=decode)
    decoding.start()
    start = server.speckv()["switches"]
    turn = 0
    while turn % 50 or server.speckv()["switches"] - start < switches:
        server.pin(STEPS[turn % len(STEPS)])
        turn += 1
    done.set()
    decoding.join()


def measure(server: Serving) -> dict[str, Any]:
    state = server.state()
    shown = state.pop("speckv")
    ours = psutil.Process().children(recursive=True)
    scheduler = next(process for process in ours if "sglang::scheduler" in _title(process))
    return {
        "switches": shown["switches"],
        "seconds": shown["switches"] * shown["switch_microseconds"] / 1e6,
        "server_info_bytes": len(json.dumps(state)),
        "scheduler_mib": scheduler.memory_info().rss / 2**20,
    }


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def report(before: dict[str, Any], after: dict[str, Any]) -> None:
    switches = after["switches"] - before["switches"]
    result = {
        "switches": switches,
        "microseconds_per_switch": round(
            1e6 * (after["seconds"] - before["seconds"]) / switches, 2
        ),
        "server_info_growth_bytes": after["server_info_bytes"] - before["server_info_bytes"],
        "scheduler_growth_mib": round(after["scheduler_mib"] - before["scheduler_mib"], 1),
    }
    table = Table("switching tiers", "measured")
    for key, value in result.items():
        table.add_row(key.replace("_", " "), str(value))
    Console().print(table)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
