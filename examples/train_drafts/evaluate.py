"""Stage 5: acceptance of a draft on held-out answers, offline: greedy chains against known answers.

    python -m examples.train_drafts.evaluate --target DIR --data DATA/held-out \
        --draft RUN/eagle3 --out eval.json

A quick guide while training; `measure` asks the real engine.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM

from examples.train_drafts import eagle3
from examples.train_drafts.common import add_common, pick_device
from examples.train_drafts.target import read_shape
from examples.train_drafts.train_eagle3 import Batch, unroll
from examples.train_drafts.training import Item, read_items

BATCH = 8


def eagle3_lengths(
    head: eagle3.Eagle3, ids: Tensor, items: list[Item], embed: Tensor, depth: int
) -> list[np.ndarray]:
    """Per sequence: drafts accepted (0..depth) by a round started at each row of the answer."""
    batch = Batch(items, embed.shape[1], embed)
    count = torch.zeros(batch.tokens.shape, dtype=torch.long)
    for step in unroll(head, batch, ids, depth, 0.0):
        count[step.chain.batch, step.chain.row] += step.accepted.long()
    return [
        count[row, i.seq.prompt_length - 1 : i.seq.length - 1].numpy()
        for row, i in enumerate(items)
    ]


def standalone_lengths(
    model: LlamaForCausalLM, items: list[Item], embed: Tensor, depth: int
) -> list[np.ndarray]:
    """The same; a chain of accepted drafts is a run of right guesses."""
    out = []
    for item in items:
        tokens = torch.tensor(item.seq.tokens)
        start = item.seq.prompt_length
        guess = model(tokens[None, :-1]).logits[0, start:].argmax(-1)
        right = (guess == tokens[start + 1 :]).numpy()
        padded = np.concatenate([right, np.zeros(depth, bool)])
        window = np.lib.stride_tricks.sliding_window_view(padded, depth)[: len(right)]
        out.append(window.cumprod(1).sum(1))
    return out


def rounds(lengths: np.ndarray) -> np.ndarray:
    """Accepted drafts of the rounds that generation really makes: each starts where one ended."""
    at, picked = 0, []
    while at < len(lengths):
        picked.append(lengths[at])
        at += int(lengths[at]) + 1
    return np.array(picked)


def summary(accepted: np.ndarray, depth: int) -> dict:
    reached = [int((accepted >= k).sum()) for k in range(depth + 1)]
    rates = [reached[k + 1] / max(1, reached[k]) for k in range(depth)]
    return {
        "accept_length": round(float(accepted.mean()) + 1, 3),
        "accept_rate_per_position": [round(r, 3) for r in rates],
        "rounds": len(accepted),
    }


def draft_lengths(args: argparse.Namespace, items: list[Item], embed: Tensor) -> list[np.ndarray]:
    config = json.loads((args.draft / "config.json").read_text())
    groups = [items[i : i + BATCH] for i in range(0, len(items), BATCH)]
    if config["architectures"] == ["LlamaForCausalLMEagle3"]:
        head, ids = eagle3.load(args.draft, read_shape(args.target), embed.float())
        head, ids = head.to(embed.device, torch.bfloat16), ids.to(embed.device)
        return [n for g in groups for n in eagle3_lengths(head, ids, g, embed, args.depth)]
    model = LlamaForCausalLM.from_pretrained(args.draft, dtype=torch.bfloat16)
    return [n for g in groups for n in standalone_lengths(model, g, embed, args.depth)]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_common(parser)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="held-out shards")
    parser.add_argument("--draft", type=Path, required=True)
    parser.add_argument("--depth", type=int, default=5)
    parser.add_argument("--limit", type=int, help="sequences")
    args = parser.parse_args()
    device, shape = pick_device(args), read_shape(args.target)
    weights = load_file(args.target / "model.safetensors")
    embed = weights["model.embed_tokens.weight"].to(device, torch.bfloat16)
    items = read_items(args.data, 4 * shape.hidden)[: args.limit]
    kinds = defaultdict(list)
    for item, lengths in zip(items, draft_lengths(args, items, embed), strict=True):
        kinds[item.seq.kind].append(rounds(lengths))
    result = {kind: summary(np.concatenate(r), args.depth) for kind, r in sorted(kinds.items())}
    everything = np.concatenate([x for r in kinds.values() for x in r])
    result["all"] = summary(everything, args.depth)
    result["mean_of_classes"] = float(
        np.mean([v["accept_length"] for k, v in result.items() if k != "all"])
    )
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
