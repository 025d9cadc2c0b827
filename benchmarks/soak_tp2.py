"""Does anything stay alive that is over? Two tensor-parallel ranks on the CPU, thousands of rounds.

Usage: python benchmarks/soak_tp2.py [--rounds 2000] [--out examples/results/soak-tp2.json]

Serves a tiny random pair, lets the depth move, and after each quarter of the rounds reads how many
launches and requests rank 0 keeps alive and how much memory both ranks hold. The first rounds, in
which buffers grow to their size, come before the first quarter. Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from sglang_speckv.files import write_atomically
from sglang_speckv.provenance import provenance
from tests.engine.conftest import PROMPTS, Serving, serving
from tests.engine.tiny_models import tiny_llama

QUARTERS = 4
WARM_UP = 200
STEPS = [0, 3, 1, 5]
PLUGIN = Path(__file__).parents[1] / "tests" / "engine" / "live_objects"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(PLUGIN), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        target = tiny_llama(root / "target", layers=4)
        draft = tiny_llama(root / "draft", layers=4, noise=0.1)
        flags = ["--model-path", str(target), "--speculative-algorithm", "STANDALONE"]
        flags += ["--speculative-draft-model-path", str(draft), "--tp-size", "2", "--speckv"]
        flags += ["--speckv-candidate-steps", ",".join(map(str, sorted(STEPS)))]
        print("starting a server of two ranks", file=sys.stderr)
        with serving(root, *flags, "--speckv-profile", "0") as server:
            seen = [serve(server, WARM_UP)]
            seen += [serve(server, asked.rounds // QUARTERS) for _ in range(QUARTERS)]
    report(seen, asked.out)


def serve(server: Serving, rounds: int) -> dict[str, Any]:
    """``rounds`` more at a moving depth, in batches that come and go; then what is there."""
    until = server.rounds() + rounds
    with server.shuffled_depths(STEPS):
        while server.rounds() < until:
            server.generate(PROMPTS, max_new_tokens=64)
    shown = server.speckv()
    return {
        "rounds": sum(shown["rounds"].values()),
        "switches": shown["switches"],
        "failures": sum(shown["failures"].values()),
        "held": shown["held"],
        "alive": shown["alive"],
        "resident_mib": [round(rank.memory_info().rss / 2**20, 1) for rank in ranks()],
    }


def ranks() -> list[psutil.Process]:
    """The schedulers among our children, in the order of their ranks."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if "sglang::scheduler" in title:
            found[title] = process
    return [found[title] for title in sorted(found)]


def report(seen: list[dict[str, Any]], out: Path | None) -> None:
    """``seen``: after the warm-up and after each quarter."""
    start, end = seen[0], seen[-1]
    result = {
        "rounds": end["rounds"] - start["rounds"],
        "switches": end["switches"] - start["switches"],
        "failures": end["failures"],
        "ranks_disagreed": end["held"],
        "live_launches_at_start": start["alive"]["DecodeLaunch"],
        "live_launches_at_end": end["alive"]["DecodeLaunch"],
        "live_requests_at_start": start["alive"]["Req"],
        "live_requests_at_end": end["alive"]["Req"],
        "resident_mib_by_quarter": [one["resident_mib"] for one in seen],
    }
    table = Table("two ranks", "measured")
    for key, value in result.items():
        table.add_row(key.replace("_", " "), str(value))
    Console().print(table)
    if out is not None:
        text = json.dumps({**result, "provenance": provenance()}, indent=1) + "\n"
        write_atomically(out, lambda scratch: scratch.write_text(text))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
