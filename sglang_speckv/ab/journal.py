"""What was measured: block by block, in memory and as one JSON line per finished block."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Self

import msgspec

from sglang_speckv.ab.arms import Arm
from sglang_speckv.ab.counters import Counters
from sglang_speckv.ab.options import RESUMABLE, Options
from sglang_speckv.ab.request import Completion
from sglang_speckv.ab.traffic import Block, Condition, Workload
from sglang_speckv.ab.window import Part, counted
from sglang_speckv.config import ConfigError
from sglang_speckv.files import BAD_JSON, read_bounded

JOURNAL = "blocks.jsonl"
_MAX_JOURNAL_BYTES = 2 << 30


@dataclass(frozen=True)
class BlockResult:
    """One arm's run of one block: its wall time in seconds, its answers, its own counters (None
    without SpecKV), and as the how manyth arm of the block it ran."""

    block: Block
    seconds: float
    completions: tuple[Completion, ...]
    counters: Counters | None = None
    place: int = 0

    @cached_property
    def parts(self) -> list[Part]:
        """What counts towards throughput, by segment."""
        return counted(self.block, self.completions)

    @property
    def tok_per_s(self) -> float:
        tokens = sum(float(part.tokens.sum()) for part in self.parts)
        return tokens / sum(part.seconds for part in self.parts)


@dataclass
class Blocks:
    """What was run, by arm and condition, in order."""

    ran: dict[tuple[Arm, Condition], list[BlockResult]] = field(default_factory=dict)

    def add(self, arm: Arm, result: BlockResult) -> None:
        self.ran.setdefault((arm, result.block.condition), []).append(result)

    def of(self, arm: Arm, condition: Condition) -> list[BlockResult]:
        return self.ran.get((arm, condition), [])

    def indices(self, arm: Arm, condition: Condition) -> set[int]:
        return {result.block.index for result in self.of(arm, condition)}

    def conditions(self) -> list[Condition]:
        return list(dict.fromkeys(condition for _, condition in self.ran))

    def seconds(self, arms: Sequence[Arm]) -> float:
        """What these arms' blocks took."""
        return sum(
            result.seconds for (arm, _), ran in self.ran.items() if arm in arms for result in ran
        )

    def paired(
        self, arm: Arm, other: Arm, condition: Condition
    ) -> list[tuple[BlockResult, BlockResult]]:
        """The blocks that both arms ran."""
        theirs = {result.block.index: result for result in self.of(other, condition)}
        ours = [result for result in self.of(arm, condition) if result.block.index in theirs]
        return [(result, theirs[result.block.index]) for result in ours]


class Head(msgspec.Struct, frozen=True):
    """A journal's first line: what was asked, and digests of what it was asked of."""

    options: dict[str, Any]
    origin: dict[str, str]


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
    counters: Counters | None = None
    place: int = 0


class Journal:
    """Finished blocks, one line each, appended to a file: a line is there whole or, cut off,
    ignored. A new journal replaces an old one when its first block is finished."""

    def __init__(
        self, path: Path, options: Options, origin: dict[str, str], resume: bool = False
    ) -> None:
        """
        Args:
            origin: Name -> digest of what must not change between the sessions of one run: code,
                prompts, machine.

        Raises:
            ConfigError: there is nothing to resume, or it is no journal of these options and of
                this origin.
        """
        self._path, self._head = path, Head(msgspec.to_builtins(options), origin)
        self._file: IO[bytes] | None = None
        self._lines: list[Line] = []
        if resume:
            head, self._lines = read_journal(path)
            self._check(head)
            self._file = path.open("ab")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._file is not None:
            self._file.close()

    def begin(self) -> None:
        """Write the first line, unless it is there: from now on the file says whose it is."""
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("wb")
            self._write(self._file, self._head)

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
            counters=result.counters,
            place=result.place,
        )
        self.begin()
        assert self._file is not None
        self._write(self._file, line)

    def restored(self, arms: Sequence[Arm], workload: Workload) -> Blocks:
        """What was measured before."""
        by_name = {(arm.draft, arm.name): arm for arm in arms}
        blocks = Blocks()
        for line in self._lines:
            arm = by_name.get((line.draft, line.arm))
            if arm is not None:
                at = Condition(line.traffic, line.concurrency, line.rate)
                block = workload.block(line.index, at)
                blocks.add(
                    arm,
                    BlockResult(block, line.seconds, line.completions, line.counters, line.place),
                )
        return blocks

    def _check(self, head: Head) -> None:
        ours = msgspec.json.decode(msgspec.json.encode(self._head.options))
        for key, value in ours.items():
            if key not in RESUMABLE and head.options.get(key) != value:
                raise ConfigError(
                    f"{self._path} was measured with {key} {head.options.get(key)!r}, not "
                    f"{value!r}; resume with the same options, or name another --out"
                )
        for key, value in self._head.origin.items():
            if head.origin.get(key) != value:
                raise ConfigError(
                    f"{self._path} was measured with another {key} ({head.origin.get(key)}, now "
                    f"{value}); name another --out and measure all of it again"
                )

    @staticmethod
    def _write(file: IO[bytes], record: Head | Line) -> None:
        file.write(msgspec.json.encode(record) + b"\n")
        file.flush()
        os.fsync(file.fileno())


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
        raise ConfigError(f"{path} is not a readable journal ({error})") from None
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return head, found
