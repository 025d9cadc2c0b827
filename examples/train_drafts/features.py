"""Stage 2: given tokens through the target once, keeping the states the drafts learn from.

python -m examples.train_drafts.features --target DIR --tokens answers.npz --out DATA/answers
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from examples.train_drafts.common import Progress, add_common, pick_device, system_prefix
from examples.train_drafts.shards import Shard
from examples.train_drafts.target import Target

TOKENS_PER_BATCH = 4096


class Given(NamedTuple):
    prompt: str
    temperature: float
    prompt_length: int
    tokens: list[int]


def read_answers(path: Path, prefix: list[int]) -> list[Given]:
    """Answers saved as one .npz: tokens, and per answer prompt_id, temperature, two lengths.

    They were made without a system prompt; every other one gets the `prefix` that the chat
    template puts first, so that the drafts know both beginnings.
    """
    z = np.load(path)
    parts = np.split(z["tokens"], np.cumsum(z["length"])[:-1])
    columns = zip(parts, z["prompt_id"], z["temperature"], z["prompt_length"], strict=True)
    return [
        Given(f"npz:{pid}", float(temp), int(n) + len(front), front + tokens.tolist())
        for i, (tokens, pid, temp, n) in enumerate(columns)
        for front in [prefix if i % 2 else []]
    ]


def batches(given: list[Given], limit: int = TOKENS_PER_BATCH) -> list[list[Given]]:
    """Batches of similar length: neighbours of 64 are sorted, order is random otherwise."""
    out: list[list[Given]] = []
    for start in range(0, len(given), 64):
        batch: list[Given] = []
        for g in sorted(given[start : start + 64], key=lambda g: len(g.tokens)):
            if batch and (len(batch) + 1) * len(g.tokens) > limit:
                out.append(batch)
                batch = []
            batch.append(g)
        out.append(batch)
    return out


def force(target: Target, batch: list[Given], shard: Shard) -> None:
    """Append the batch's states; the last token of each sequence is only a label."""
    width = max(len(g.tokens) for g in batch) - 1
    tokens = torch.zeros(len(batch), width, dtype=torch.long)
    for row, g in enumerate(batch):
        tokens[row, : len(g.tokens) - 1] = torch.tensor(g.tokens[:-1])
    states, _ = target.prefill(tokens.to(target.device))
    for row, g in enumerate(batch):
        n = len(g.tokens) - 1
        shard.append(g.prompt, "answers", g.temperature, g.prompt_length, g.tokens, states[row, :n])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_common(parser)
    parser.add_argument("--tokens", type=Path, required=True, help="answers as .npz")
    parser.add_argument("--part", default="0/1", help="i/n: the i-th of n shares of the answers")
    parser.add_argument("--max-answer", type=int, default=1024, help="its first tokens are kept")
    args = parser.parse_args()
    target = Target(args.target, pick_device(args))
    given = [
        g._replace(tokens=g.tokens[: g.prompt_length + args.max_answer])
        for g in read_answers(args.tokens, system_prefix(args.target))
    ]
    random.Random(args.seed).shuffle(given)
    part, parts = map(int, args.part.split("/"))
    todo = batches(given[part::parts])
    shard = Shard(args.out, 4 * target.shape.hidden)
    done = len(shard.sequences)
    progress = Progress("features", sum(len(b) for b in todo))
    for batch in todo:
        if done >= len(batch):  # a batch cut short by a stop is redone from its first missing one
            done -= len(batch)
            continue
        force(target, batch[done:], shard)
        done = 0
        progress.show(len(shard.sequences), f"{shard.rows} rows")


if __name__ == "__main__":
    main()
