"""A replay of draft trees: every shape, and the policy, serve the recorded rounds.

A trace of trees says of each verified node how likely it was and whether it was accepted. The nodes
of a smaller shape are the likeliest of the same ones, so it is known what it would have brought.
Rounds are taken as recorded: a smaller tree would have moved all later ones. What rounds take is
assumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sglang_speckv.config import ConfigError, Shape, parse_shapes
from sglang_speckv.offline.records import Record, read_trace, trace_files, trace_hashes
from sglang_speckv.offline.round_cost import AssumedCost
from sglang_speckv.policy import Batch, Round, create_policy
from sglang_speckv.policy.cost import TimedRound
from sglang_speckv.policy.trees import holds, right_within, within
from sglang_speckv.replay.report import of_best, rounded
from sglang_speckv.replay.run import check_enough
from sglang_speckv.replay.score import Earned, earned, over_best
from sglang_speckv.replay.walk import NOISE, Played

THROUGHPUT = "throughput"


@dataclass(frozen=True, eq=False)
class Trees:
    """Of every request its rounds of the shape ``served``: first probabilities [rounds] and nodes
    [rounds, drafts, 3]. ``shapes`` are the candidates, as far as it is known what they bring."""

    source: dict[str, Any]
    served: Shape
    shapes: tuple[Shape, ...]
    requests: Sequence[tuple[np.ndarray, np.ndarray]]


def is_of_trees(path: Path) -> bool:
    """Whether ``path`` is a trace of trees. Raises :class:`ConfigError` where it is no trace."""
    return bool(read_trace(trace_files(path)[0])[0].candidate_shapes)


def read_trees(paths: Sequence[Path]) -> Trees:
    """Raises :class:`ConfigError`: no trace of trees, or no round in it whose nodes are known."""
    by_request: dict[str, list[Record]] = {}
    names: set[str] = set()
    source: dict[str, Any] = {}
    for number, file in enumerate(file for path in paths for file in trace_files(path)):
        header, records = read_trace(file)
        names |= set(header.candidate_shapes)
        own = {"target": header.target, "draft": header.draft, "topk": header.topk}
        source = source or own
        if own != source:
            raise ConfigError(
                f"{file} is of {own} and the trace before it of {source}; take one pair of models "
                "and one topk at a time"
            )
        for record in records:
            if record.nodes:
                by_request.setdefault(f"{number}:{record.request}", []).append(record)
    seen = [shape_of(record) for records in by_request.values() for record in records]
    if not seen:
        raise ConfigError(f"{paths[0]}: no round of a draft tree whose nodes are known")
    served = max(set(seen), key=lambda shape: (shape.num_draft_tokens, shape))
    if 2 * seen.count(served) < len(seen):
        raise ConfigError(
            f"{paths[0]}: only {seen.count(served)} of {len(seen)} rounds have the largest shape "
            f"{served}; record one with --speckv-policy static:{served}, which tells of all others"
        )
    requests = [rounds for one in by_request.values() if (rounds := _rounds(one, served))]
    shapes = tuple(s for s in parse_shapes(",".join(names)) if s == served or holds(served, s))
    return Trees(source, served, shapes, requests)


def shape_of(record: Record) -> Shape:
    return Shape(record.num_steps, record.num_draft_tokens or record.num_steps + 1)


def _rounds(records: Sequence[Record], served: Shape) -> tuple[np.ndarray, np.ndarray] | None:
    kept = [record for record in records if shape_of(record) == served]
    for record in kept:
        if len(record.nodes) != served.drafts:
            raise ConfigError(f"round {record.round} has not as many nodes as its shape {served}")
    firsts = [np.nan if record.first_prob is None else record.first_prob for record in kept]
    return (np.array(firsts), np.array([record.nodes for record in kept])) if kept else None


def replay_trees(
    paths: Sequence[Path], cost: AssumedCost, sizes: Sequence[int], seeds: int = 4, passes: int = 4
) -> dict[str, Any]:
    """What every arm earned with so many requests at a time: JSON builtins.

    Raises:
        ConfigError: no trace of trees, or too few requests in it.
    """
    trees = read_trees(paths)
    check_enough(sizes, len(trees.requests))
    return {
        "source": {
            **trees.source,
            "served": str(trees.served),
            "requests": len(trees.requests),
            "rounds": sum(len(firsts) for firsts, _ in trees.requests),
            "files": trace_hashes(paths),
        },
        "cost": {"draft": cost.draft, "width": cost.width},
        "candidate_shapes": list(map(str, trees.shapes)),
        "cells": [_cell(trees, cost, size, seeds, passes) for size in sizes],
        "notes": [
            "Rounds as recorded: another shape would have moved all later ones, which flatters the "
            "policy. Round times are assumed."
        ],
    }


def tree_lines(result: dict[str, Any]) -> list[str]:
    """For people."""
    source, lines = result["source"], []
    lines.append(
        f"{source['draft']} -> {source['target']}, topk {source['topk']}, {source['requests']:,} "
        f"requests; rounds recorded as {source['served']}"
    )
    for cell in result["cells"]:
        lines.append(f"{cell['requests']} at a time, tokens per target step:")
        for arm in cell["arms"]:
            shares = "  ".join(f"{shape}: {share:.0%}" for shape, share in arm["shapes"].items())
            told = [f"{arm['arm']:<14}", f"{arm['rate']:.4g}", of_best(arm), shares]
            lines.append("  " + "  ".join(told))
    return [*lines, *result["notes"]]


def _cell(trees: Trees, cost: AssumedCost, size: int, seeds: int, passes: int) -> dict[str, Any]:
    fixed = [f"static:{shape}" for shape in trees.shapes]
    arms: dict[str, tuple[Earned, Sequence[Played]]] = {}
    for name in (*fixed, THROUGHPUT):
        walks: Sequence[Played] = [
            _walk(name, trees, cost, size, seed, passes) for seed in range(seeds)
        ]
        arms[name] = earned(walks, len(trees.requests)), walks
    ratios = over_best({name: arm for name, (arm, _) in arms.items()}, fixed)
    best = max(fixed, key=lambda name: arms[name][0].rate)
    rows = []
    for name, (arm, walks) in arms.items():
        tiers = np.concatenate([walk.num_steps for walk in walks])
        shares = np.bincount(tiers, minlength=len(trees.shapes)) / max(len(tiers), 1)
        ratio = ratios[name]
        rows.append(
            {
                "arm": name,
                "rate": round(arm.rate, 5),
                "best_fixed": best,
                "vs_best_fixed": None if name == best else round(ratio.value, 5),
                "interval": None if name == best else rounded(ratio.interval),
                "accept_length": round(
                    float(np.concatenate([walk.tokens for walk in walks]).mean()), 4
                ),
                "shapes": {
                    str(shape): round(float(share), 4)
                    for shape, share in zip(trees.shapes, shares, strict=True)
                    if share
                },
            }
        )
    return {"requests": size, "best_fixed": best, "arms": rows}


def _walk(name: str, trees: Trees, cost: AssumedCost, size: int, seed: int, passes: int) -> Played:
    shapes = trees.shapes
    tiers = tuple(range(len(shapes)))
    policy: Any = create_policy(name, tiers, len(shapes) - 1, candidate_shapes=shapes)
    seconds = [float(cost.of_shape(np.array([size]), shape)[0]) for shape in shapes]
    if name == THROUGHPUT:
        policy.profiled([TimedRound(size, tier, took) for tier, took in enumerate(seconds)])
    order, noise = np.random.default_rng([seed, size]), np.random.default_rng([seed, 1])
    told: list[tuple[int, float, np.ndarray, np.ndarray]] = []
    for rows, firsts, nodes in _batches(trees, order, size, passes):
        tier = policy.decide(Batch(size, firsts, rows)).num_steps
        shape = shapes[tier]
        correct = right_within(nodes, shape)
        took = seconds[tier] * float(np.exp(noise.normal(0.0, NOISE)))
        policy.observe(
            Round(
                tier,
                size,
                correct.tolist(),
                took,
                firsts,
                requests=rows,
                nodes=within(nodes, shape),
            )
        )
        told.append((tier, seconds[tier], np.array(rows), correct + 1))
    tier_column, time_column, requests, tokens = zip(*told, strict=True)
    return Played(
        np.array(tier_column),
        np.full(len(told), np.nan),
        np.array(time_column),
        np.concatenate(requests) % len(trees.requests),
        np.concatenate(tokens),
    )


def _batches(
    trees: Trees, rng: np.random.Generator, size: int, passes: int
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Rounds of ``size`` requests: numbers that tell them apart, also the same one in another pass,
    their first probabilities and nodes. Where one ends, the next takes its place."""
    count = len(trees.requests)
    waiting = iter([p * count + int(r) for p in range(passes) for r in rng.permutation(count)])
    slots = [[next(waiting), 0] for _ in range(size)]
    while True:
        rounds = [(trees.requests[number % count], at) for number, at in slots]
        firsts = np.array([firsts[at] for (firsts, _), at in rounds])
        yield [number for number, _ in slots], firsts, np.stack([n[at] for (_, n), at in rounds])
        for slot in slots:
            slot[1] += 1
            if slot[1] == len(trees.requests[slot[0] % count][0]):
                number = next(waiting, None)
                if number is None:
                    return
                slot[:] = number, 0
