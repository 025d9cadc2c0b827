"""Synthetic traces: requests whose drafts are as good as the draft says (calibrated signals)."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from sglang_speckv.offline.records import Header, Record

HEADER = Header(
    target="target",
    draft="draft",
    algorithm="STANDALONE",
    draft_vocab_size=1000,
    candidate_steps=(0, 1, 2, 3, 5, 7),
    dtype="float32",
    device="cpu",
    sglang="0.5.23",
    policy="static:7",
)


@dataclass(frozen=True)
class Traffic:
    """``batch`` requests at a time, each ``rounds`` long; ``depths`` are drafted by turns.

    ``labels`` gives each class's mean log-odds of acceptance; prompts, rounds and positions
    scatter around it. ``cost``: seconds of verify, per verified token, extend, draft forward.
    """

    requests: int = 24
    prompts: int = 12
    rounds: int = 40
    batch: int = 4
    depths: Sequence[int] = (7,)
    labels: Mapping[str, float] = field(default_factory=lambda: {"code": 1.5, "chat": 0.0})
    signal: bool = True
    cost: tuple[float, float, float, float] = (0.040, 0.001, 0.004, 0.004)
    jitter: float = 0.05
    seed: int = 0

    def seconds(self, steps: int, batch: int | None = None) -> float:
        verify, width, extend, draft = self.cost
        batch = batch or self.batch
        return verify + width * batch * (steps + 1) + extend + max(steps - 1, 0) * draft

    def records(self) -> Iterator[Record]:
        rng = np.random.default_rng(self.seed)
        names = list(self.labels)
        effects = {
            p: rng.normal(self.labels[names[p % len(names)]], 0.8) for p in range(self.prompts)
        }
        number = 0
        for first in range(0, self.requests, self.batch):
            group = range(first, min(first + self.batch, self.requests))
            for turn in range(self.rounds):
                steps = self.depths[number % len(self.depths)]
                seconds = self.seconds(steps, len(group)) * float(
                    np.exp(rng.normal(0, self.jitter))
                )
                for request in group:
                    prompt = request % self.prompts
                    odds = effects[prompt] + rng.normal(0, 1.2) + rng.normal(0, 0.5, max(steps, 1))
                    accept = 1 / (1 + np.exp(-odds))
                    hits = rng.random(steps) < accept[:steps]
                    drafted = accept[:steps].round(6).tolist() if self.signal else []
                    yield Record(
                        round=number,
                        request=f"{names[prompt % len(names)]}:{prompt}:{request}",
                        batch_size=len(group),
                        context_len=100 + 2 * turn,
                        num_steps=steps,
                        num_correct_drafts=int(np.cumprod(hits).sum()),
                        top1_prob=tuple(drafted),
                        entropy=tuple(6.9 * (1 - p) for p in drafted),
                        first_prob=float(accept[0]) if self.signal else None,
                        seconds=seconds,
                    )
                number += 1


def write_trace(path: Path, records: Iterable[Record], header: Header = HEADER) -> Path:
    """One trace file at ``path`` (``*.jsonl.gz``)."""
    encode = msgspec.json.Encoder().encode
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(encode(header) + b"\n")
        for record in records:
            file.write(encode(record) + b"\n")
    return path
