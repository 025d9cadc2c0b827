"""What a round costs: T(batch size, steps, context), and what compression does to it.

    python examples/gpu/cost_curves.py --out out/gpu/cost.json
    python examples/gpu/cost_curves.py --draft eagle3 --compression plain --batch-size 1 --batch-size 16
    python examples/gpu/cost_curves.py --attention-backend triton --draft standalone --context 4096
    speckv replay traces/eagle3 --cost out/gpu/cost.eagle3.plain.512.json

Random weights of the shape of Llama 3 8B, an EAGLE-3 head for it and a 1B draft, each target in
16 bits, with fp8 weights, and with fp8 weights and KV cache. One server per draft and compression
holds every depth as a tier; one without speculation gives the row "off" (-1 steps). Beside --out
one table per draft, compression and context is written for `speckv replay --cost`.

--layers and --hidden make everything small, for a try on a CPU:

    python examples/gpu/cost_curves.py --layers 2 --hidden 256 --vocab 1024 --dtype float32 --draft eagle3 --compression plain --batch-size 1 --batch-size 2 --context 32 --steps 0,1,3 --rounds 4
"""  # noqa: E501

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

sys.path.insert(0, str(Path(__file__).parents[2]))

from examples.gpu import shapes
from examples.gpu.curves import Cell, measure, replay_table, reserve
from examples.gpu.observe import OutFile, finish, log_path, machine, memory_of, run, tier_memory
from sglang_speckv.ab.client import Client, ServerError
from sglang_speckv.ab.process import Server, running
from sglang_speckv.config import ConfigError, parse_steps
from sglang_speckv.files import write_json
from sglang_speckv.progress import Screen

COMPRESSIONS = {
    "plain": (),
    "fp8": ("--quantization", "fp8"),
    "kv8": ("--kv-cache-dtype", "fp8_e4m3"),
    "fp8-kv8": ("--quantization", "fp8", "--kv-cache-dtype", "fp8_e4m3"),
}
"""Of the target; the draft stays in 16 bits (its KV cache is of the target's type)."""
DRAFTS = {"eagle3": "EAGLE3", "standalone": "STANDALONE"}
OFF = "off"


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    drafts: tuple[str, ...] = tuple(DRAFTS)
    compressions: tuple[str, ...] = ("plain", "fp8", "fp8-kv8")
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    contexts: tuple[int, ...] = (512, 4096)
    steps: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7, 8)
    rounds: int = 16
    dtype: str = "bfloat16"
    attention_backend: str | None = None
    server_flags: tuple[str, ...] = ()
    target: shapes.Shape = field(default=shapes.LLAMA_8B)
    draft: shapes.Shape = field(default=shapes.LLAMA_1B)

    def __post_init__(self) -> None:
        _check_known("draft", self.drafts, DRAFTS)
        _check_known("compression", self.compressions, COMPRESSIONS)
        longest = max(self.contexts) + self.most_tokens
        if longest > shapes.MAX_POSITIONS:
            raise ConfigError(f"{longest} tokens are more than {shapes.MAX_POSITIONS} positions")

    @property
    def most_tokens(self) -> int:
        """New tokens of one request."""
        return 4 * self.rounds + self.rounds * (max(self.steps) + 1) + 16

    @property
    def kv_tokens(self) -> int:
        """For the largest batch at the longest context, with SGLang's reserve for drafts."""
        each = max(self.contexts) + self.most_tokens + reserve(self.steps)
        return max(self.batch_sizes) * each + 4096


def scaled(plan: Plan, layers: int | None, hidden: int | None, vocab: int | None) -> Plan:
    """Smaller models of the same proportions; the draft has half the depth and width."""
    target, draft = plan.target, plan.draft
    if layers is not None or hidden is not None:
        layers, hidden = layers or target.layers, hidden or target.hidden
        if hidden % target.head_dim or hidden < 2 * draft.head_dim:
            raise ConfigError(f"--hidden {hidden} is not a multiple of {target.head_dim}")
        target = target.scaled(layers, hidden)
        draft = draft.scaled(max(1, layers // 2), hidden // 2)
    if vocab is not None:
        if vocab < 258:
            raise ConfigError(f"--vocab {vocab} is less than the tokenizer's 258 tokens")
        target, draft = (replace(shape, vocab=vocab) for shape in (target, draft))
    return replace(plan, target=target, draft=draft)


def write_models(plan: Plan, folder: Path) -> dict[str, Path]:
    """The target, and the drafts by name."""
    return {
        "target": shapes.write_llama(folder / "target", plan.target),
        "eagle3": shapes.write_eagle3_head(folder / "eagle3", plan.target),
        "standalone": shapes.write_llama(folder / "standalone", plan.draft),
    }


def server_flags(plan: Plan, models: dict[str, Path], draft: str, compression: str) -> list[str]:
    """For one server; ``draft`` may be :data:`OFF`."""
    most = str(max(plan.batch_sizes))
    flags = [
        *("--model-path", str(models["target"]), "--load-format", "dummy"),
        *("--dtype", plan.dtype, *COMPRESSIONS[compression], "--random-seed", "0"),
        *("--max-running-requests", most, "--disable-prefill-cuda-graph"),
        *("--cuda-graph-bs-decode", *map(str, plan.batch_sizes)),  # no other is ever run
        *("--max-total-tokens", str(plan.kv_tokens)),
    ]
    if plan.attention_backend is not None:
        flags += ["--attention-backend", plan.attention_backend]
    if draft != OFF:
        flags += [
            *("--speculative-algorithm", DRAFTS[draft]),
            *("--speculative-draft-model-path", str(models[draft])),
            *("--speculative-draft-load-format", "dummy"),
            *("--speckv-candidate-steps", ",".join(map(str, plan.steps))),
            *("--speckv-policy", f"static:{plan.steps[0]}", "--speckv-profile", "0"),
        ]
        if "--quantization" in COMPRESSIONS[compression]:
            flags += ["--speculative-draft-model-quantization", "unquant"]
    return [*flags, *plan.server_flags]


def default_backend() -> str | None:
    """Said to every server: left open, SpecKV takes FlashInfer where SGLang alone takes FA3, and
    "off" would be another engine's."""
    return "flashinfer" if torch.cuda.is_available() else None


async def measure_server(
    plan: Plan, server: Server, found: dict[str, Any], save: Callable[[], None]
) -> None:
    """Put every cell into ``found`` as it comes, then what is known of the server."""
    async with running([server], 1800) as failures:
        if failures:
            raise failures[server.name]
        async with Client(server.name, server.url, timeout_s=1800) as client:
            steps = () if found["draft"] == OFF else plan.steps
            async for cell in measure(
                client, plan.batch_sizes, plan.contexts, steps, plan.rounds, plan.target.vocab
            ):
                found["cells"].append(asdict(cell))
                save()
            state = await client.internal_state()
    found |= {
        "ready_s": round(server.ready_s or 0.0, 1),
        "attention_backend": state.get("attention_backend"),
        "memory_gb": memory_of(state),
        "tier_memory_gb": tier_memory(server.log.read_text(errors="replace")),
    }


def measure_all(plan: Plan, out: Path | None) -> dict[str, Any]:
    """Server after server. All that is known is written with every cell, so that little is lost
    where the script is cut off; a server that fails is told and passed over."""
    screen = Screen()
    result: dict[str, Any] = {
        "what": "seconds per round with random weights: costs, never acceptance",
        "plan": asdict(plan),
        "provenance": machine(),
        "servers": [],
    }
    with tempfile.TemporaryDirectory() as scratch:
        models = write_models(plan, Path(scratch) / "models")
        for compression, draft in product(plan.compressions, (OFF, *plan.drafts)):
            found: dict[str, Any] = {"draft": draft, "compression": compression, "cells": []}
            result["servers"].append(found)
            name = f"{draft}.{compression}"
            screen.say(f"measuring {name}")
            flags = server_flags(plan, models, draft, compression)
            server = Server(name, flags, log_path(out, name, Path(scratch)))
            try:
                asyncio.run(measure_server(plan, server, found, partial(save, result, out)))
            except ServerError as error:
                screen.say(f"{name}: {error}")
                found["problem"] = str(error)
            save(result, out)
    return result


def save(result: dict[str, Any], out: Path | None) -> None:
    """The result, and beside it the tables of its newest server."""
    if out is None:
        return
    write_json(out, result)
    *before, found = result["servers"]
    if found["draft"] != OFF and found["cells"]:
        off = [one for one in before if one["draft"] == OFF][-1]
        cells = [Cell(**cell) for cell in [*off["cells"], *found["cells"]]]
        write_tables(out, f"{found['draft']}.{found['compression']}", cells)


def write_tables(out: Path, name: str, cells: Sequence[Cell]) -> None:
    """One file per context beside ``out``, for ``speckv replay --cost``."""
    for context in sorted({cell.context_len for cell in cells}):
        table = replay_table(cell for cell in cells if cell.context_len == context)
        write_json(out.with_suffix(f".{name}.{context}.json"), table)


def _check_known(what: str, names: Sequence[str], known: dict[str, Any]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown {what} {name!r}; choose from {', '.join(known)}")


app = typer.Typer(add_completion=False, rich_markup_mode=None)
_Several = list[str] | None


@app.command()
def main(
    draft: Annotated[_Several, typer.Option(help="eagle3, standalone; repeatable.")] = None,
    compression: Annotated[
        _Several, typer.Option(help=f"{', '.join(COMPRESSIONS)}; repeatable.")
    ] = None,
    batch_size: Annotated[list[int] | None, typer.Option(help="Repeatable.")] = None,
    context: Annotated[
        list[int] | None, typer.Option(help="Prompt tokens per request; repeatable.")
    ] = None,
    steps: Annotated[
        str, typer.Option(help="Depths, 0 is drafting nothing.")
    ] = "0,1,2,3,4,5,6,7,8",
    rounds: Annotated[int, typer.Option(help="At least about so many per cell.")] = 16,
    dtype: Annotated[str, typer.Option(help="Of what is not compressed.")] = "bfloat16",
    attention_backend: Annotated[
        str | None, typer.Option(help="Of every server. [default: flashinfer, on CUDA]")
    ] = None,
    server_flag: Annotated[
        _Several, typer.Option(help="One more flag for every server; repeatable.")
    ] = None,
    layers: Annotated[int | None, typer.Option(help="Of the target, instead of 32.")] = None,
    hidden: Annotated[int | None, typer.Option(help="Of the target, instead of 4096.")] = None,
    vocab: Annotated[int | None, typer.Option(help="Instead of 128256.")] = None,
    out: OutFile = None,
) -> None:
    """Measure round times with random weights; the last line is one JSON object."""
    default = Plan()
    plan = Plan(
        drafts=tuple(draft or default.drafts),
        compressions=tuple(compression or default.compressions),
        batch_sizes=tuple(sorted(set(batch_size or default.batch_sizes))),
        contexts=tuple(sorted(set(context or default.contexts))),
        steps=tuple(sorted(set(parse_steps(steps)))),
        rounds=rounds,
        dtype=dtype,
        attention_backend=attention_backend or default_backend(),
        server_flags=tuple(server_flag or ()),
    )
    result = measure_all(scaled(plan, layers, hidden, vocab), out)
    finish(result, None)
    raise typer.Exit(1 if any("problem" in found for found in result["servers"]) else 0)


if __name__ == "__main__":
    run(app, "cost_curves")
