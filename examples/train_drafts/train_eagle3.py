"""Stage 3: train the EAGLE-3 head on the target's distribution along chains of draft steps.

    python -m examples.train_drafts.train_eagle3 --target DIR --data DATA/own --out RUN/eagle3

Step k of a chain only counts in use where steps before it were accepted, so only those rows (and a
few others) are unrolled: five steps then cost about two.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from examples.train_drafts import eagle3
from examples.train_drafts.common import pick_device
from examples.train_drafts.pointing import causal_shares, pointing_loss, right_copies
from examples.train_drafts.target import read_shape
from examples.train_drafts.training import (
    Item,
    add_training,
    endless,
    frequent,
    read_items,
    soft_cross_entropy,
    token_counts,
    train,
)


class Batch:
    """Padded sequences as a head sees them: row t has states t, token t+1, and predicts t+2."""

    def __init__(self, items: list[Item], hidden: int, embed: Tensor) -> None:
        width = max(i.seq.length for i in items) - 1
        size, device = len(items), embed.device
        self.tokens = torch.zeros(size, width + 2, dtype=torch.long)
        states = torch.zeros(size, width + 1, 4 * hidden, dtype=torch.bfloat16)
        starts = torch.zeros(size, width, dtype=torch.bool)
        for row, (seq, shard) in enumerate(items):
            n = seq.length
            self.tokens[row, : n + 1] = torch.tensor(seq.tokens)
            states[row, :n] = shard.states(seq)
            starts[row, seq.prompt_length - 1 : n - 1] = True
        self.tokens, states, starts = (t.to(device) for t in (self.tokens, states, starts))
        self.aux, self.final = states[:, :-1, : 3 * hidden], states[:, 1:, 3 * hidden :]
        self.embed, self.table = embed[self.tokens[:, 1:-1]], embed
        self.ends = torch.tensor([i.seq.length - 1 for i in items], device=device)
        self.chain = eagle3.Chain(*starts.nonzero(as_tuple=True))


class Step(NamedTuple):
    """One draft step of N chains."""

    chain: eagle3.Chain
    logits: Tensor  # [N, draft vocabulary]
    final: Tensor  # [N, H], the target's final state that the label comes from
    alive: Tensor  # every step before was accepted
    accepted: Tensor  # and this one too
    shares: Tensor  # [N, heads of the last KV group, T], its attention to rows fed by the target


def unroll(
    head: eagle3.Eagle3,
    batch: Batch,
    ids: Tensor,
    steps: int,
    extra: float,
    columns: Tensor | slice = slice(None),
) -> list[Step]:
    """One Step per depth.

    `extra` is the share of chains that go on although rejected; `columns` of the draft vocabulary
    get logits, and `ids` is what they stand for.
    """
    out, own = [], []
    fed, chain = head.first(batch.aux, batch.embed), batch.chain
    hidden = fed.hidden[chain.batch, chain.row]
    heads = head.shape.heads // head.shape.kv_heads
    shares = causal_shares(fed.q[:, -heads:], fed.k[:, -1:]).transpose(1, 2)
    shares = shares[chain.batch, chain.row]
    accepted = torch.ones_like(chain.row, dtype=torch.bool)
    for depth in range(steps):
        at = chain.row + depth
        logits = head.logits(hidden, columns)
        guess = ids[logits.argmax(-1)]
        alive, accepted = accepted, accepted & (guess == batch.tokens[chain.batch, at + 2])
        out.append(Step(chain, logits, batch.final[chain.batch, at], alive, accepted, shares))
        go_on = accepted | (torch.rand(len(at), device=at.device) < extra)
        go_on &= at + 1 < batch.ends[chain.batch]
        if depth + 1 == steps or not go_on.any():
            break
        chain = eagle3.Chain(chain.batch[go_on], chain.row[go_on])
        accepted, hidden = accepted[go_on], hidden[go_on]
        own = [(ko[go_on], vo[go_on]) for ko, vo in own]
        embed = batch.table[batch.tokens[chain.batch, chain.row + depth + 2]]
        hidden, shares = head.step(chain, hidden, embed, fed, own)
    return out


def some_columns(batch: Batch, ids: Tensor, hot: Tensor, chance: int) -> Tensor:
    """Columns that stand in for the whole draft vocabulary: frequent, occurring and random ones.

    A third of the columns makes a step twice as fast, and the softmax hardly differs.
    """
    wanted = torch.isin(ids, batch.tokens.unique())
    wanted[hot] = True
    wanted[torch.randint(len(ids), (chance,), device=ids.device)] = True
    return wanted.nonzero()[:, 0]


def chain_loss(
    head: eagle3.Eagle3, batch: Batch, ids: Tensor, hot: Tensor, args: argparse.Namespace
) -> tuple[Tensor, list[float]]:
    """Mean over chains of their summed cross-entropies and `pointing` times that of pointing.py.

    Beside it the conditional acceptance per step, and the share of attention pointed right.
    """
    columns = some_columns(batch, ids, hot, args.columns // 2)
    ids = ids[columns]
    table = batch.table[ids]
    right, pointed, shares = right_copies(batch.tokens[:, 1:]), 0.0, []
    loss, rates = torch.zeros((), device=table.device), []
    with torch.autocast(batch.aux.device.type, dtype=torch.bfloat16):
        steps = unroll(head, batch, ids, args.depth, args.extra, columns)
        for depth, step in enumerate(steps):
            label = F.linear(step.final, table).float().softmax(-1)
            loss = loss + soft_cross_entropy(step.logits, label)
            places = right[step.chain.batch, step.chain.row + depth]
            places &= torch.arange(places.shape[1], device=places.device) <= step.chain.row[:, None]
            add, share = pointing_loss(step.shares, places)
            pointed = pointed + add
            shares.append(share)
            rates.append((step.accepted.sum() / step.alive.sum()).item())
    rates, shares = (x + [math.nan] * (args.depth - len(x)) for x in (rates, shares))
    return (loss + args.pointing * pointed) / len(batch.chain.row), [*rates, *shares]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_training(parser)
    parser.add_argument("--start", type=Path, help="folder of a head to go on from")
    parser.add_argument("--draft-vocab", type=int, default=16384)
    parser.add_argument("--depth", type=int, default=5, help="draft steps per chain")
    parser.add_argument("--extra", type=float, default=0.1, help="rejected chains that go on")
    parser.add_argument("--columns", type=int, default=2048, help="see some_columns")
    parser.add_argument("--pointing", type=float, default=0.5, help="weight of its loss")
    args = parser.parse_args()
    device, shape = pick_device(args), read_shape(args.target)
    weights = load_file(args.target / "model.safetensors")
    embed = weights["model.embed_tokens.weight"].to(device)
    items = read_items(args.data, 4 * shape.hidden)
    counts = token_counts(items, shape.vocab)
    if args.start:
        head, ids = eagle3.load(args.start, shape, embed.float().cpu())
    else:
        ids = frequent(counts, args.draft_vocab)
        head = eagle3.fresh(shape, {n: t.float() for n, t in weights.items()}, ids)
    hot = frequent(counts[ids.numpy()], args.columns // 2).to(device)
    head, ids = head.to(device), ids.to(device)

    def loss_of(batch: list[Item]) -> tuple[Tensor, list[float]]:
        return chain_loss(head, Batch(batch, shape.hidden, embed), ids, hot, args)

    def save() -> None:
        config = json.loads((args.target / "config.json").read_text())
        eagle3.save(head, ids.cpu(), args.out, config)

    train(head, loss_of, endless(items, args.batch_tokens, random.Random(args.seed)), save, args)


if __name__ == "__main__":
    main()
