"""What both drafts train with: batches, the optimiser and its schedule, checkpoints, the loss."""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from examples.train_drafts.common import add_common
from examples.train_drafts.shards import Sequence, Shard


class Item(NamedTuple):
    """One sequence; shard None where only its tokens are known."""

    seq: Sequence
    shard: Shard | None


def read_items(folders: list[Path], width: int) -> list[Item]:
    shards = [Shard(f, width) for f in folders]
    items = [Item(s, shard) for shard in shards for s in shard.sequences]
    return [i for i in items if i.seq.length - i.seq.prompt_length >= 4]


def token_counts(items: list[Item], vocab: int) -> np.ndarray:
    """How often each token occurs: in answers, and a fifth of that in prompts, which they copy."""
    counts = np.zeros(vocab)
    for item in items:
        tokens, start = item.seq.tokens, item.seq.prompt_length
        np.add.at(counts, tokens[start:], 1.0)
        np.add.at(counts, tokens[:start], 0.2)
    return counts


def frequent(counts: np.ndarray, size: int) -> Tensor:
    """The `size` most frequent ids, ascending."""
    return torch.from_numpy(np.sort(np.argsort(-counts, kind="stable")[:size]))


def endless(items: list[Item], tokens: int, rng: random.Random) -> Iterator[list[Item]]:
    """Batches of similar length with at most `tokens` padded tokens, epoch after epoch."""
    while True:
        order = rng.sample(items, len(items))
        ready: list[list[Item]] = []
        for start in range(0, len(order), 256):
            batch: list[Item] = []
            for item in sorted(order[start : start + 256], key=lambda i: i.seq.length):
                if batch and (len(batch) + 1) * item.seq.length > tokens:
                    ready.append(batch)
                    batch = []
                batch.append(item)
            ready.append(batch)
        rng.shuffle(ready)
        yield from ready


class SoftCrossEntropy(torch.autograd.Function):
    """Sum over rows of -t log softmax(x), its gradient made in the forward pass: a third of the
    memory traffic of the plain expression, which on a CPU is what the loss costs."""

    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor) -> Tensor:
        x = logits.float()
        total = x.logsumexp(-1, keepdim=True)
        loss = total.sum() - (target * x).sum()
        ctx.save_for_backward((x - total).exp_().sub_(target).to(logits.dtype))
        return loss

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0] * grad.to(ctx.saved_tensors[0].dtype), None


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return SoftCrossEntropy.apply(logits, target)


def add_training(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="shards")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--batch-tokens", type=int, default=3072, help="padded tokens per batch")
    parser.add_argument("--save-every", type=int, default=25)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """20 steps of warm-up, then a cosine down to 3 %."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    return peak * min(1.0, (step + 1) / 20) * (0.03 + 0.97 * cosine)


Loss = Callable[[list[Item]], tuple[Tensor, list[float]]]


def train(
    model: nn.Module,
    loss_of: Loss,
    batches: Iterator[list[Item]],
    save: Callable[[], None],
    args: argparse.Namespace,
) -> None:
    """Runs to `args.steps`, resuming from OUT/checkpoint.pt; log lines go to OUT/log.jsonl.

    `save` writes the draft as the engine loads it, at every checkpoint.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(params, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.01)
    step = _restore(model, optimiser, args.out / "checkpoint.pt")
    start, seen = time.monotonic(), []
    while step < args.steps:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        loss, stats = loss_of(next(batches))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimiser.step()
        step += 1
        seen.append([loss.item(), *stats])
        if step % args.save_every == 0 or step == args.steps:
            line = {"step": step, "seconds": round(time.monotonic() - start), "mean": _mean(seen)}
            _log(args.out / "log.jsonl", line)
            _checkpoint(model, optimiser, step, args.out / "checkpoint.pt")
            save()
            seen = []


def _mean(rows: list[list[float]]) -> list[float]:
    return np.nanmean(np.array(rows), 0).round(4).tolist()


def _log(path: Path, line: dict) -> None:
    print(json.dumps(line), file=sys.stderr, flush=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def _checkpoint(model: nn.Module, optimiser: torch.optim.Optimizer, step: int, path: Path) -> None:
    part = path.with_suffix(".part")
    torch.save({"model": model.state_dict(), "optim": optimiser.state_dict(), "step": step}, part)
    os.replace(part, path)


def _restore(model: nn.Module, optimiser: torch.optim.Optimizer, path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return 0
    saved = torch.load(path, weights_only=True)
    model.load_state_dict(saved["model"])
    optimiser.load_state_dict(saved["optim"])
    return saved["step"]
