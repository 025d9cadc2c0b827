"""Does a server stay right and not grow? Requests of every kind for half an hour, audited.

Usage: python benchmarks/soak.py [--minutes 30] [--tp 1] [--algorithm STANDALONE] [--stock]
           [--out FILE.json]

Serves a tiny random pair on this machine, and the same target without speculation beside it. Load
comes in cycles: one request at a time, then four, sixteen, four and one, in which lengths and
parameters are mixed, clients hang up or abort, policies are selected and depths pinned by the
documented control, and the prefix cache is flushed now and then. At the end of a cycle nothing is
running; then

- a few requests alone are compared count by count: the server's rounds and correct drafts with the
  sum over the requests' own `meta_info`;
- the counters have to add up, and the metrics page to say the same;
- a sample of the greedy answers is asked of the other server and compared token by token (where its
  two best tokens are less than 1e-3 apart, either is right);
- the memory that is the server's processes' own (resident and not shared with a file) is noted.

The slope of the memory over the cycles, of all processes and of each, with a 95 % interval, is in
MB per hour; the first fifth of the cycles, in which buffers and heaps grow to their size, does not
count. ``--stock`` serves SGLang without SpecKV at three steps, to compare its memory with: nothing
is steered or audited then, and answers of the exact lane are not compared. Prints a table, then one
JSON line; exits with 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.soak_checks import Soak, audit, compare, own_megabytes, set_state, slope, speckv
from benchmarks.soak_requests import Mix, together
from sglang_speckv.ab.client import Client, ServerError
from sglang_speckv.ab.process import Server
from sglang_speckv.files import write_json
from sglang_speckv.progress import Screen
from sglang_speckv.provenance import provenance
from tests.engine.tiny_models import tiny_eagle3_head, tiny_llama

PLUGINS = Path(__file__).parents[1] / "tests" / "engine"
STEPS = (0, 1, 3, 5)
AT_ONCE = (1, 4, 16, 4, 1)
EACH = 3
"""Requests per slot of each of these stages."""
SAMPLE = 0.1
"""Of the greedy answers that the other server is asked for."""
ODD_LINE = re.compile(r"Traceback|Error\b|Exception|SpecKV: .*(?:failed|serving|ends here)")


async def soak(run: Soak, mix: Mix, minutes: float, seed: int, screen: Screen) -> None:
    chance, started, cycle = random.Random(seed), time.monotonic(), 0
    async with run.server, run.alone:
        run.exact = not run.stock and "exact" in await speckv(run.server)
        with screen.status("cycle 1") as report:
            while time.monotonic() - started < 60 * minutes or cycle < 4:
                cycle += 1
                try:
                    await one_cycle(run, mix, chance)
                except (ServerError, psutil.Error) as error:
                    run.wrong(f"cycle {cycle} broke off: {error!r:.200}")
                    return
                hours = (time.monotonic() - started) / 3600
                run.memory.append((hours, own_megabytes(run.processes)))
                report(
                    f"cycle {cycle}: {60 * hours:.1f} of {minutes:g} minutes, "
                    f"{sum(run.kinds.values())} requests, {run.counts['compared']} compared, "
                    f"{run.counts['errors']} errors, {sum(run.memory[-1][1].values()):.0f} MB"
                )


async def one_cycle(run: Soak, mix: Mix, chance: random.Random) -> None:
    for at_once in AT_ONCE:
        await steer(run, chance)
        asked = [mix.draw() for _ in range(EACH * at_once)]
        turning = asyncio.ensure_future(keep_steering(run, chance))
        answers = await together(run.server, asked, at_once)
        turning.cancel()
        (ended,) = await asyncio.gather(turning, return_exceptions=True)
        if ended is not None and not isinstance(ended, asyncio.CancelledError):
            run.wrong(f"steering broke off: {ended!r:.200}")
        for answer in answers:
            run.kinds[answer.asked.kind] += 1
            run.counts["tokens"] += len(answer.output_ids)
            if answer.error:
                run.wrong(answer.error)
            elif answer.whole and answer.asked.compared and chance.random() < SAMPLE:
                await compare(run, answer)
    if not run.stock:
        await audit(run, mix)


async def steer(run: Soak, chance: random.Random) -> None:
    """Select a policy, or pin a depth until the next time; now and then forget the prefixes."""
    if chance.random() < 0.1:
        with suppress(ServerError):  # a busy server refuses
            await run.server.flush_cache(attempts=1)
    if run.stock:
        return
    shown = await speckv(run.server)
    policies = [*shown["policies"], "throughput#2"]
    keys = {f"speckv_policy:{chance.choice(policies)}": 1}
    if chance.random() < 0.3:
        keys |= {"speckv_num_steps": chance.choice(STEPS)}
    for key, value in keys.items():
        await set_state(run, key, value)


async def keep_steering(run: Soak, chance: random.Random) -> None:
    """While requests run, pin and release depths every few rounds."""
    while not run.stock:
        await asyncio.sleep(chance.uniform(0.05, 0.5))
        await set_state(run, "speckv_num_steps", chance.choice([-1, -1, *STEPS]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--tp", type=int, default=1, help="tensor-parallel ranks of the server")
    parser.add_argument("--algorithm", choices=("STANDALONE", "EAGLE3"), default="STANDALONE")
    parser.add_argument("--stock", action="store_true", help="serve SGLang without SpecKV")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    asked = parser.parse_args()
    screen = Screen()
    with tempfile.TemporaryDirectory() as folder:
        server, alone = servers(Path(folder), asked.algorithm, asked.tp, asked.stock)
        try:
            with screen.status("starting two servers"):
                start(server, "live_objects")
                start(alone, "ordered")  # as SGLang applies penalties in verification
                for one in (server, alone):
                    asyncio.run(one.wait_ready(600))
            clients = (Client(one.name, one.url, 600) for one in (server, alone))
            run = Soak(*clients, family(server), stock=asked.stock)
            asyncio.run(soak(run, Mix(asked.seed), asked.minutes, asked.seed, screen))
            result = told(run, server.log, asked)
        except ServerError as error:
            screen.say(str(error))
            return 1
        finally:
            for one in (server, alone):
                one.stop()
    return report(result, asked.out)


def servers(root: Path, algorithm: str, tp: int, stock: bool) -> tuple[Server, Server]:
    """The server under test, and the target alone."""
    target = tiny_llama(root / "target", layers=4)
    head = algorithm == "EAGLE3"
    draft = tiny_eagle3_head(root / "d", target) if head else tiny_llama(root / "d", noise=0.1)
    common = ["--model-path", str(target), "--random-seed", "1", "--max-total-tokens", "16384"]
    common += ["--max-running-requests", "16", "--constrained-json-disable-any-whitespace"]
    flags = [*common, "--speculative-algorithm", algorithm, "--tp-size", str(tp)]
    flags += ["--speculative-draft-model-path", str(draft), "--enable-metrics"]
    if stock:
        flags += ["--speculative-num-steps", "3", "--speculative-eagle-topk", "1"]
        flags += ["--speculative-num-draft-tokens", "4"]
    else:
        flags += ["--speckv", "--speckv-candidate-steps", ",".join(map(str, STEPS))]
        flags += ["--speckv-trace", str(root / "trace")]
    return (
        Server("under test", flags, root / "server.log"),
        # With it SGLang counts a token for penalties one round late.
        Server("the target alone", [*common, "--disable-overlap-schedule"], root / "alone.log"),
    )


def start(server: Server, plugin: str) -> None:
    """With a plugin of ``tests/engine``."""
    inherited = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(PLUGINS / plugin), inherited)))
    try:
        server.start()
    finally:
        os.environ["PYTHONPATH"] = inherited


def family(server: Server) -> list[psutil.Process]:
    assert server._process is not None
    launcher = psutil.Process(server._process.pid)
    return [launcher, *launcher.children(recursive=True)]


def told(run: Soak, log: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """The result, with what the server's log and counters hold at the end."""
    for line in log.read_text(errors="replace").splitlines():
        if ODD_LINE.search(line):
            run.wrong(f"log: {line[:200]}")
    whole = [(hours, sum(mb.values())) for hours, mb in run.memory]
    names = sorted({name for _, mb in run.memory for name in mb})
    return {
        "algorithm": asked.algorithm,
        "tp": asked.tp,
        "stock": asked.stock,
        "minutes": round(60 * run.memory[-1][0], 1) if run.memory else 0.0,
        "requests": sum(run.kinds.values()),
        "errors": run.counts["errors"],
        "memory_slope_mb_per_hour": slope(whole),
        "memory_slope_by_process": {
            name: slope([(hours, mb.get(name, 0.0)) for hours, mb in run.memory]) for name in names
        },
        "exact_lane": run.exact,
        **{
            name: run.counts[name]
            for name in ("tokens", "compared", "exact_compared", "ties", "audits", "commands")
        },
        "by_kind": dict(sorted(run.kinds.items())),
        "counters": run.shown,
        "memory_mb": [[round(60 * hours, 2), round(mb, 2)] for hours, mb in whole],
        "first_errors": run.errors,
        "differing": run.differing,
        "provenance": provenance(),
    }


def report(result: dict[str, Any], out: Path | None) -> int:
    if out is not None:
        write_json(out, result)
    long = ("memory_mb", "provenance", "first_errors", "differing", "counters")
    table = Table("soak", f"TP {result['tp']}, {result['algorithm']}")
    for key, value in result.items():
        if key not in long:
            table.add_row(key.replace("_", " "), str(value))
    console = Console()
    console.print(table)
    for error in result["first_errors"]:
        console.print(error, style="red", markup=False)
    print(json.dumps({key: value for key, value in result.items() if key not in long}))
    return 1 if result["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
