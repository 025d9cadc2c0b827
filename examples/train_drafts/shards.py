"""Training data on disk: token ids with the target's states, appended one sequence at a time.

A shard is a folder: `index.jsonl` (one line per sequence) and `states.bf16` (rows of 4 * hidden).
A line is written after its states, so a stage that was stopped resumes after its last line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Sequence:
    prompt: str  # unit of the split: a prompt is in one part only
    kind: str  # class of the prompt, "text" for plain text
    temperature: float
    prompt_length: int
    offset: int  # first row in states.bf16
    tokens: list[int]  # one more than there are states: the last one was never fed back

    @property
    def length(self) -> int:
        return len(self.tokens) - 1


class Shard:
    """Append-only; `width` is the number of values in a row of states."""

    def __init__(self, folder: Path, width: int) -> None:
        self.folder, self.width = folder, width
        folder.mkdir(parents=True, exist_ok=True)
        self.sequences = list(_read_index(folder / "index.jsonl"))
        self.rows = sum(s.length for s in self.sequences)
        self._index = folder / "index.jsonl"
        self._states = folder / "states.bf16"
        self._states.touch()

    def append(
        self,
        prompt: str,
        kind: str,
        temperature: float,
        prompt_length: int,
        tokens: list[int],
        states: Tensor,
    ) -> None:
        """`states` [len(tokens) - 1, width] in bfloat16."""
        assert states.shape == (len(tokens) - 1, self.width), states.shape
        if self._states.stat().st_size != self.rows * self.width * 2:
            os.truncate(self._states, self.rows * self.width * 2)  # a stop between the two writes
        with self._states.open("ab") as file:
            file.write(states.cpu().contiguous().view(torch.int16).numpy().tobytes())
        seq = Sequence(prompt, kind, temperature, prompt_length, self.rows, tokens)
        with self._index.open("a") as file:
            file.write(json.dumps(asdict(seq), separators=(",", ":")) + "\n")
        self.sequences.append(seq)
        self.rows += seq.length

    def states(self, seq: Sequence) -> Tensor:
        """[length, width], bfloat16, read from disk now."""
        raw = np.fromfile(
            self._states, np.int16, seq.length * self.width, offset=seq.offset * self.width * 2
        )
        return torch.from_numpy(raw).view(torch.bfloat16).view(seq.length, self.width)


def _read_index(path: Path) -> Iterator[Sequence]:
    """Its sequences; a last line that a stop cut off is taken away."""
    whole = path.read_bytes() if path.exists() else b""
    complete = whole[: whole.rfind(b"\n") + 1]
    if complete != whole:
        os.truncate(path, len(complete))
    for line in complete.splitlines():
        yield Sequence(**json.loads(line))
