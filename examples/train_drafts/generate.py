"""Stage 1: the target answers prompts, in many slots at once, keeping the states drafts learn from.

    python -m examples.train_drafts.generate --target DIR --prompts DATA/prompts.json \
        --out DATA/own --self-made 1500

Besides the given prompts the target makes up user turns itself (`--self-made`): started after
"<|im_start|>user" it samples a request, and then answers it.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer

from examples.train_drafts.common import Progress, add_common, chat_ids, pick_device, system_prefix
from examples.train_drafts.shards import Shard
from examples.train_drafts.target import Cache, Target

PREFILL_BATCH = 8


@dataclass(frozen=True)
class Job:
    prompt: str
    kind: str
    ids: list[int]
    temperature: float = 0.0
    max_new: int = 192
    ignore_eos: bool = False  # as benchmarks ask for: drafts should know what comes after the end
    is_request: bool = False  # a user turn in the making, not yet an answer


class Slots:
    """Sequences in the making; a free slot has job None and decodes token 0 at position 0."""

    def __init__(self, target: Target, count: int, length: int) -> None:
        self.target, self.length = target, length
        self.cache = Cache(target.shape, count, length, target.device)
        width = 4 * target.shape.hidden
        self.states = torch.zeros(count, length, width, dtype=torch.bfloat16, device=target.device)
        self.tokens = torch.zeros(count, length + 1, dtype=torch.long, device=target.device)
        self.pos = torch.zeros(count, dtype=torch.long, device=target.device)
        self.temperature = torch.zeros(count, device=target.device)
        self.jobs: list[Job | None] = [None] * count

    def free(self) -> list[int]:
        return [i for i, job in enumerate(self.jobs) if job is None]

    def _place(self, prompt_length: int) -> int:
        """Short prompts go to the first slots, long ones to the last: see `target.BLOCK`."""
        wanted = prompt_length / self.length * len(self.jobs)
        return min(self.free(), key=lambda slot: abs(slot - wanted))

    def start(self, jobs: list[Job]) -> None:
        """Prefill `jobs` into free slots and draw their first tokens."""
        width = max(len(j.ids) for j in jobs)
        tokens = torch.zeros(len(jobs), width, dtype=torch.long, device=self.target.device)
        for row, job in enumerate(jobs):
            tokens[row, : len(job.ids)] = torch.tensor(job.ids)
        states, kv = self.target.prefill(tokens, keep_kv=True)
        for row, job in enumerate(jobs):
            n = len(job.ids)
            slot = self._place(n)
            self.cache.k[:, slot, :, :n], self.cache.v[:, slot, :, :n] = kv[:, :, row, :, :n]
            self.states[slot, :n], self.tokens[slot, :n] = states[row, :n], tokens[row, :n]
            self.jobs[slot], self.pos[slot] = job, n
            self.temperature[slot] = job.temperature
            self.tokens[slot, n] = self._draw(
                states[row, n - 1 : n], self.temperature[slot : slot + 1]
            )

    def step(self) -> None:
        rows = torch.arange(len(self.jobs), device=self.target.device)
        states = self.target.decode(self.tokens[rows, self.pos], self.pos, self.cache)
        self.states[rows, self.pos] = states
        live = torch.tensor([j is not None for j in self.jobs], device=self.target.device)
        drawn = self._draw(states, self.temperature * live)
        self.pos += live.long()
        self.tokens[rows, self.pos] = torch.where(live, drawn, 0)

    def _draw(self, states: Tensor, temperature: Tensor) -> Tensor:
        logits = self.target.logits(states[:, -self.target.shape.hidden :])
        drawn, hot = logits.argmax(-1), temperature.nonzero()[:, 0]
        if len(hot):
            p = (logits[hot].float() / temperature[hot, None]).softmax(-1).cumsum(-1)
            u = torch.rand(len(hot), 1, device=p.device) * p[:, -1:]
            drawn[hot] = torch.searchsorted(p, u)[:, 0].clamp(max=p.shape[1] - 1)
        return drawn

    def finished(self, eos: int) -> list[tuple[Job, list[int], Tensor]]:
        """(job, tokens, states without the last token's) of what is done; frees the slots."""
        out = []
        last = self.tokens[torch.arange(len(self.jobs)), self.pos].tolist()
        for slot, (job, n) in enumerate(zip(self.jobs, self.pos.tolist(), strict=True)):
            if job is None:
                continue
            ended = last[slot] == eos and not job.ignore_eos
            if ended or n + 1 >= len(job.ids) + job.max_new or n + 1 >= self.length:
                out.append(
                    (job, self.tokens[slot, : n + 1].tolist(), self.states[slot, :n].clone())
                )
                self.jobs[slot], self.pos[slot], self.temperature[slot] = None, 0, 0.0
        return out


def answer_job(job: Job, temperature: float, rng: random.Random) -> Job:
    return replace(job, temperature=temperature, ignore_eos=rng.random() < 0.12)


def make_jobs(args: argparse.Namespace, tokenizer: AutoTokenizer, rng: random.Random) -> list[Job]:
    """Neighbours are alike in length, so that few slots wait in attention for a long one."""
    jobs = []
    for row in json.loads(args.prompts.read_text()):
        if row["held_out"] == args.held_out:
            job = Job(
                row["group"], row["kind"], chat_ids(tokenizer, row["text"]), 0.0, args.max_new
            )
            jobs.append(job if args.held_out else answer_job(job, rng.choice([0.0, 0.0, 0.7]), rng))
    opening = system_prefix(args.target) + tokenizer.encode("<|im_start|>user\n")
    for i in range(args.self_made):
        jobs.append(Job(f"self:{args.seed}:{i}", "self-made", opening, 1.0, 140, is_request=True))
    rng.shuffle(jobs)
    chunk = 4 * args.slots
    parts = [jobs[i : i + chunk] for i in range(0, len(jobs), chunk)]
    return [j for part in parts for j in sorted(part, key=lambda j: len(j.ids))]


def unanswered(jobs: list[Job], shard: Shard) -> list[Job]:
    """What an earlier run of this stage left; a made-up request is known by its name."""
    names = {s.prompt for s in shard.sequences}
    asked = {tuple(s.tokens[: s.prompt_length]) for s in shard.sequences}
    return [
        j for j in jobs if (j.prompt not in names if j.is_request else tuple(j.ids) not in asked)
    ]


def run(target: Target, jobs: list[Job], shard: Shard, args: argparse.Namespace) -> None:
    tokenizer = AutoTokenizer.from_pretrained(args.target)
    eos = tokenizer.convert_tokens_to_ids("<|im_end|>")
    to_answer = tokenizer.encode("\n<|im_start|>assistant\n")
    rng = random.Random(args.seed + 1)
    slots = Slots(target, args.slots, args.length)
    progress, written = Progress("generate", len(jobs)), 0
    queue = [j for j in jobs if len(j.ids) + 8 < args.length]
    deadline = time.monotonic() + args.minutes * 60
    while queue or any(slots.jobs):
        if time.monotonic() > deadline:
            return
        while queue and len(slots.free()) >= min(PREFILL_BATCH, len(queue)):
            batch, queue = queue[:PREFILL_BATCH], queue[PREFILL_BATCH:]
            slots.start(batch)
        slots.step()
        for job, tokens, states in slots.finished(eos):
            if not job.is_request:
                shard.append(job.prompt, job.kind, job.temperature, len(job.ids), tokens, states)
                written += len(tokens) - len(job.ids)
            elif tokens[-1] == eos and len(tokens) - len(job.ids) > 8:
                ask = replace(job, ids=tokens + to_answer, is_request=False, max_new=args.max_new)
                queue.insert(0, answer_job(ask, rng.choice([0.0, 0.0, 0.7]), rng))
        progress.show(len(shard.sequences), f"{written} new tokens, {len(queue)} waiting")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_common(parser)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument(
        "--held-out", action="store_true", help="answer the held-out prompts instead"
    )
    parser.add_argument("--self-made", type=int, default=0, help="requests the target makes up")
    parser.add_argument("--slots", type=int, default=128)
    parser.add_argument("--length", type=int, default=544, help="tokens of prompt and answer")
    parser.add_argument("--max-new", type=int, default=192)
    parser.add_argument("--part", default="0/1", help="i/n: the i-th of n shares of the prompts")
    parser.add_argument("--minutes", type=float, default=600.0, help="stop after this long")
    args = parser.parse_args()
    target = Target(args.target, pick_device(args))
    tokenizer = AutoTokenizer.from_pretrained(args.target)
    shard = Shard(args.out, 4 * target.shape.hidden)
    part, parts = map(int, args.part.split("/"))
    jobs = make_jobs(args, tokenizer, random.Random(args.seed))[part::parts]
    run(target, unanswered(jobs, shard), shard, args)


if __name__ == "__main__":
    main()
