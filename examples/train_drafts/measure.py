"""Stage 7: accept length in the real engine, per draft, class, position and compression level.

    python -m examples.train_drafts.measure --drafts eagle3=DIR standalone=DIR \
        --targets bf16=DIR int8=DIR nf4=DIR --out examples/results/drafts.json

Greedy, five draft steps, the demo's prompts through the chat template; none of
them was trained on. One engine per pair of target and draft; "demo" for a folder is the committed
draft, completed from the first target. Levels are compared over the first few prompts of each class
("compared"), which is all that the compressed targets answer. Pairs that OUT has already are kept.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from examples.train_drafts.common import chat_ids
from sglang_speckv.ab.prompts import load_prompts
from sglang_speckv.ab.request import Prompt
from sglang_speckv.demo.drafts import algorithm_of, resolve_draft
from sglang_speckv.provenance import provenance
from sglang_speckv.srt import cpu

NUM_STEPS = 5
SPLIT = "by prompt: the demo's, none of which was trained on"


def answer(
    target: Path, draft: Path, prompts: list[Prompt], args: argparse.Namespace
) -> list[dict]:
    """SGLang's meta_info of each prompt's answer."""
    import sglang

    tokenizer = AutoTokenizer.from_pretrained(target)
    defaults = cpu.default_server_args() if cpu.enabled() else {}
    engine = sglang.Engine(
        **(defaults | {"model_path": str(target), "dtype": args.dtype, "context_length": 2048}),
        speculative_algorithm=algorithm_of(draft),
        speculative_draft_model_path=str(draft),
        speculative_num_steps=NUM_STEPS,
        speculative_eagle_topk=1,
        speculative_num_draft_tokens=NUM_STEPS + 1,
        random_seed=args.seed,
        log_level="error",
    )
    try:
        out = engine.generate(
            input_ids=[chat_ids(tokenizer, p.prompt) for p in prompts],
            sampling_params={"temperature": 0, "max_new_tokens": args.max_new},
        )
    finally:
        engine.shutdown()
    return [o["meta_info"] for o in out]


def table(infos: list[dict], prompts: list[Prompt]) -> dict[str, dict]:
    """Per class and over all: what the rounds accepted."""
    kinds: dict[str, list[dict]] = defaultdict(list)
    for info, prompt in zip(infos, prompts, strict=True):
        kinds[prompt.kind].append(info)
        kinds["all"].append(info)
    return {kind: counts(rows) for kind, rows in kinds.items()}


def counts(infos: list[dict]) -> dict[str, Any]:
    """From SGLang's histograms: bin k counts the rounds in which k drafts were correct."""
    bins = [0] * (NUM_STEPS + 1)
    for info in infos:
        for k, n in enumerate(info.get("spec_correct_drafts_histogram", [])):
            bins[k] += n
    rounds = sum(bins)
    reached = [sum(bins[k:]) for k in range(NUM_STEPS + 1)]
    return {
        "requests": len(infos),
        "tokens": sum(i["completion_tokens"] for i in infos),
        "rounds": rounds,
        "accept_length": round(1 + sum(reached[1:]) / max(1, rounds), 3),
        "accept_rate_per_position": [
            round(reached[k + 1] / max(1, reached[k]), 3) for k in range(NUM_STEPS)
        ],
    }


def pairs(values: list[str]) -> dict[str, Path]:
    return {name: Path(path) for name, path in (v.split("=", 1) for v in values)}


def write(out: Path, cells: list[dict], args: argparse.Namespace) -> None:
    result = {
        "what": "accept length (with bonus) and conditional acceptance per draft position",
        "split": SPLIT,
        "num_steps": NUM_STEPS,
        "temperature": 0.0,
        "dtype": args.dtype,
        "seed": args.seed,
        "max_new_tokens": args.max_new,
        "cells": cells,
        "provenance": provenance(),
    }
    out.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--drafts", nargs="+", required=True, help="name=folder")
    parser.add_argument("--targets", nargs="+", required=True, help="level=folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per-class", type=int, default=24)
    parser.add_argument("--compressed-per-class", type=int, default=8)
    parser.add_argument("--max-new", type=int, default=64)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    every = load_prompts()
    kinds = len({p.kind for p in every})
    cells = json.loads(args.out.read_text())["cells"] if args.out.exists() else []
    known, targets = {(c["draft"], c["level"]) for c in cells}, pairs(args.targets)
    original, few = next(iter(targets)), args.compressed_per_class * kinds
    for level, target in targets.items():
        prompts = every[: args.per_class * kinds if level == original else few]
        for name, draft in pairs(args.drafts).items():
            if (name, level) in known:
                continue
            demo = draft == Path("demo")
            complete = resolve_draft(name, targets[original]) if demo else draft
            infos = answer(target, complete, prompts, args)
            cell = {"draft": name, "level": level, "classes": table(infos, prompts)}
            cells.append(cell | {"compared": table(infos[:few], prompts[:few])})
            write(args.out, cells, args)
            print(level, name, cell["classes"]["all"], flush=True)


if __name__ == "__main__":
    if cpu.wanted():
        cpu.enable()
    main()
