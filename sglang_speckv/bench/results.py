"""What was measured: block by block, in memory and as one JSON line per finished block."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import msgspec

from sglang_speckv.bench.arms import Arm
from sglang_speckv.bench.counters import Counters
from sglang_speckv.bench.load import Completion
from sglang_speckv.bench.steady import Counted, counted
from sglang_speckv.bench.traffic import Block, Condition, Workload
from sglang_speckv.config import ConfigError
from sglang_speckv.files import BAD_JSON, read_bounded

JOURNAL = "blocks.jsonl"
_MAX_JOURNAL_BYTES = 2 << 30


@dataclass(frozen=True)
class BlockResult:
    """One arm's run of one block: its wall time in seconds, its answers, and its own counters,
    None without SpecKV."""

    block: Block
    seconds: float
    completions: tuple[Completion, ...]
    counters: Counters | None = None

    @cached_property
    def counted(self) -> Counted:
        """What counts towards throughput."""
        return counted(self.block, self.completions, self.seconds)

    @property
    def tokens(self) -> float:
        return float(self.counted.tokens.sum())

    @property
    def cost_s(self) -> float:
        return self.counted.cost_s

    @property
    def tok_per_s(self) -> float:
        return self.tokens / self.cost_s


@dataclass
class Results:
    """Blocks by arm and condition, in order of their index."""

    blocks: dict[tuple[Arm, Condition], list[BlockResult]] = field(default_factory=dict)

    def add(self, arm: Arm, result: BlockResult) -> None:
        self.blocks.setdefault((arm, result.block.condition), []).append(result)

    def has(self, arm: Arm, block: Block) -> bool:
        return any(r.block.index == block.index for r in self.of(arm, block.condition))

    def of(self, arm: Arm, condition: Condition) -> list[BlockResult]:
        return self.blocks.get((arm, condition), [])

    def conditions(self) -> list[Condition]:
        return list(dict.fromkeys(condition for _, condition in self.blocks))

    def behind(self, arm: Arm, condition: Condition) -> float:
        """tok/s over that of the best static arm, in the blocks that ``arm`` ran."""
        ours = {r.block.index: r for r in self.of(arm, condition)}
        rates = [0.0]
        for (other, at), blocks in self.blocks.items():
            theirs = [r for r in blocks if r.block.index in ours]
            if at == condition and other.is_static and len(theirs) == len(ours):
                rates.append(tok_per_s(theirs))
        return tok_per_s(list(ours.values())) / max(rates) if max(rates) else 1.0

    def common(self, arms: Sequence[Arm], condition: Condition) -> dict[Arm, list[BlockResult]]:
        """The blocks that all ``arms`` ran, so that they compare pair by pair."""
        found = {arm: {r.block.index: r for r in self.of(arm, condition)} for arm in arms}
        shared = set.intersection(*(set(results) for results in found.values())) if found else set()
        return {arm: [found[arm][index] for index in sorted(shared)] for arm in arms}


def tok_per_s(results: Sequence[BlockResult]) -> float:
    """All tokens over all time, 0 of none: not a mean of rates, which short blocks would bias."""
    return sum(r.tokens for r in results) / (sum(r.cost_s for r in results) or 1.0)


class Head(msgspec.Struct, frozen=True):
    """A journal's first line: what was asked and what was settled before the first block."""

    options: dict[str, Any]
    max_new_tokens: int


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """A finished block."""

    draft: str
    arm: str
    traffic: str
    index: int
    seconds: float
    completions: tuple[Completion, ...]
    concurrency: int | None = None
    rate: float | None = None
    prompts: tuple[str, ...] = ()
    counters: Counters | None = None


class Journal:
    """Appends finished blocks to a file; a line is there whole or, cut off, ignored."""

    def __init__(self, path: Path, head: Head | None = None) -> None:
        """A new journal that starts with ``head``, or one to be continued."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = path.open("wb" if head else "ab")
        if head:
            self._write(head)

    def add(self, arm: Arm, result: BlockResult) -> None:
        condition = result.block.condition
        line = Line(
            draft=arm.draft,
            arm=arm.name,
            traffic=condition.traffic,
            index=result.block.index,
            seconds=result.seconds,
            completions=result.completions,
            concurrency=condition.concurrency,
            rate=condition.rate,
            prompts=tuple(prompt.id for prompt in result.block.prompts),
            counters=result.counters,
        )
        self._write(line)

    def close(self) -> None:
        self._file.close()

    def _write(self, record: Head | Line) -> None:
        self._file.write(msgspec.json.encode(record) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def read_journal(path: Path) -> tuple[Head, list[Line]]:
    """What an interrupted run left; a last line that was cut off is removed from the file.

    Raises:
        ConfigError: there is none, or it is not a journal.
    """
    content = read_bounded(
        path, _MAX_JOURNAL_BYTES, "--resume continues an interrupted --out folder"
    )
    whole = content[: content.rfind(b"\n") + 1]
    try:
        first, *lines = whole.splitlines()
        head = msgspec.json.decode(first, type=Head)
        found = [msgspec.json.decode(line, type=Line) for line in lines]
    except BAD_JSON as error:
        raise ConfigError(f"{path} is not a readable journal of speckv ab ({error})") from None
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return head, found


def restored(lines: Iterable[Line], arms: Sequence[Arm], workload: Workload) -> Results:
    """Results as they were; blocks of other arms or prompts than now are left out."""
    by_name = {(arm.draft, arm.name): arm for arm in arms}
    results = Results()
    for line in lines:
        arm = by_name.get((line.draft, line.arm))
        block = workload.block(line.index, Condition(line.traffic, line.concurrency, line.rate))
        if arm is None or tuple(prompt.id for prompt in block.prompts) != line.prompts:
            continue
        if not results.has(arm, block):
            results.add(arm, BlockResult(block, line.seconds, line.completions, line.counters))
    return results
