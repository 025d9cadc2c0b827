"""Traces as columns: one entry per request and round, for whatever learns from or replays them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np

from sglang_speckv.config import MAX_NUM_STEPS, ConfigError
from sglang_speckv.offline.records import Header, Record, read_trace, trace_files

IDENTITY = (
    "target",
    "draft",
    "algorithm",
    "quantization",
    "draft_quantization",
    "kv_cache_dtype",
    "dtype",
    "device",
    "sglang",
    "draft_vocab_size",
)
"""Fields of :class:`Header` in which traces must agree to be one pair's, on one engine."""
_CHUNK = 1 << 16


@dataclass(frozen=True, eq=False)
class Columns:
    """Arrays [n] in the traces' order, unless said otherwise.

    ``first_prob`` and ``seconds`` are NaN where unknown. ``signals`` [n, depth, 2]: per draft
    position top-1 probability and entropy over the log of the draft vocabulary, NaN beyond
    ``num_steps`` and where nothing tapped the draft. ``request``, ``prompt`` and ``label`` index
    ``requests`` (unique per file), ``prompts`` and ``labels``.
    """

    header: Header
    headers: tuple[Header, ...]
    file: np.ndarray
    round: np.ndarray
    request: np.ndarray
    prompt: np.ndarray
    label: np.ndarray
    batch_size: np.ndarray
    context_len: np.ndarray
    num_steps: np.ndarray
    num_correct_drafts: np.ndarray
    first_prob: np.ndarray
    seconds: np.ndarray
    asleep: np.ndarray
    stopped: np.ndarray
    num_verified: np.ndarray
    signals: np.ndarray
    requests: tuple[str, ...]
    prompts: tuple[str, ...]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.round)

    def only(self, rows: np.ndarray) -> Columns:
        """The records of ``rows``, a mask or numbers."""
        arrays = {
            field.name: getattr(self, field.name)[rows]
            for field in fields(self)
            if isinstance(getattr(self, field.name), np.ndarray)
        }
        return replace(self, **arrays)


def read_columns(traces: Iterable[Path]) -> Columns:
    """All records of some trace files or directories.

    Raises:
        ConfigError: no trace, two pairs of models, an impossible record, or no record at all.
    """
    files = [file for trace in traces for file in trace_files(trace)]
    names = _Names()
    headers, parts = [], []
    for number, file in enumerate(files):
        header, records = read_trace(file)
        if header.candidate_shapes:
            raise ConfigError(
                f"{file} is a trace of draft trees (topk {header.topk}), and this wants one of "
                "chains; record it with --speculative-eagle-topk 1"
            )
        headers.append(header)
        _check_same(headers[0], header, file)
        for chunk in _chunks(records):
            parts.append(_part(chunk, number, file, header, names))
    if not parts:
        raise ConfigError(f"{', '.join(map(str, files))}: no record of any round")
    return Columns(
        header=headers[0],
        headers=tuple(headers),
        **{name: _joined([part[name] for part in parts]) for name in parts[0]},
        requests=tuple(names.requests),
        prompts=tuple(names.prompts),
        labels=tuple(names.labels),
    )


def identity_of(header: Header) -> dict[str, str | int | None]:
    """Whose rounds these are, in the names that an artifact is checked by."""
    return {name: getattr(header, name) for name in IDENTITY}


def _check_same(first: Header, header: Header, file: Path) -> None:
    for name, value in identity_of(header).items():
        if value != getattr(first, name):
            raise ConfigError(
                f"{file} has {name} {value!r} and the trace before it {getattr(first, name)!r}; "
                "take one pair of models at a time"
            )


def _chunks(records: Iterator[Record]) -> Iterator[list[Record]]:
    while chunk := list(islice(records, _CHUNK)):
        yield chunk


class _Names:
    """Numbers for requests, prompts and labels, in order of appearance."""

    def __init__(self) -> None:
        self.requests: dict[str, int] = {}
        self.prompts: dict[str, int] = {}
        self.labels: dict[str, int] = {}
        self._known: dict[tuple[int, str], tuple[int, int, int]] = {}

    def of(self, file: int, record: Record) -> tuple[int, int, int]:
        key = file, record.request
        found = self._known.get(key)
        if found is None:
            found = (
                self.requests.setdefault(f"{file}:{record.request}", len(self.requests)),
                self.prompts.setdefault(record.prompt, len(self.prompts)),
                self.labels.setdefault(record.label, len(self.labels)),
            )
            self._known[key] = found
        return found


def _part(
    records: Sequence[Record], number: int, file: Path, header: Header, names: _Names
) -> dict[str, np.ndarray]:
    def integers(name: str) -> np.ndarray:
        try:
            return np.array([getattr(record, name) for record in records], dtype=np.int64)
        except OverflowError:
            raise ConfigError(f"{file} has a record whose {name} is no sane count") from None

    ids = np.array([names.of(number, record) for record in records], dtype=np.int32)
    steps = integers("num_steps")
    part = {
        "file": np.full(len(records), number, dtype=np.int32),
        "round": integers("round"),
        "request": ids[:, 0],
        "prompt": ids[:, 1],
        "label": ids[:, 2],
        "batch_size": integers("batch_size"),
        "context_len": integers("context_len"),
        "num_steps": steps,
        "num_correct_drafts": integers("num_correct_drafts"),
        "first_prob": _floats(record.first_prob for record in records),
        "seconds": _floats(record.seconds for record in records),
        "asleep": np.array([record.asleep for record in records]),
        "stopped": np.array([record.stopped for record in records]),
        "num_verified": np.array(
            [r.num_steps if r.num_verified is None else r.num_verified for r in records]
        ),
    }
    _check_records(part, file)
    log_vocab = math.log(max(2, header.draft_vocab_size))
    part["signals"] = np.stack(
        [
            _padded([record.top1_prob for record in records], steps),
            _padded([record.entropy for record in records], steps) / np.float32(log_vocab),
        ],
        axis=-1,
    )
    return part


def _check_records(part: dict[str, np.ndarray], file: Path) -> None:
    steps, correct = part["num_steps"], part["num_correct_drafts"]
    first_prob, seconds = part["first_prob"], part["seconds"]
    verified = part["num_verified"]
    problems = {
        f"num_steps outside of 0..{MAX_NUM_STEPS}": (steps < 0) | (steps > MAX_NUM_STEPS),
        "num_verified outside of 0..num_steps": (verified < 0) | (verified > steps),
        "num_correct_drafts outside of 0..num_verified": (correct < 0) | (correct > verified),
        "no round number in 0..2**40": (part["round"] < 0) | (part["round"] >= 1 << 40),
        "a batch_size below 1": part["batch_size"] < 1,
        "a negative context_len": part["context_len"] < 0,
        "a first_prob outside of 0..1": (first_prob < 0) | (first_prob > 1),
        "seconds that are not a positive time": (seconds <= 0) | np.isinf(seconds),
    }
    for problem, wrong in problems.items():
        if wrong.any():
            at = int(np.argmax(wrong))
            raise ConfigError(f"{file}: the record of round {part['round'][at]} has {problem}")


def _floats(values: Iterable[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values], dtype=float)


def _padded(rows: Sequence[Sequence[float]], steps: np.ndarray) -> np.ndarray:
    """Rows of up to ``steps`` values as one float32 matrix, NaN where there is no signal."""
    depth = int(steps.max(initial=0))
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    flat = np.fromiter(chain.from_iterable(rows), dtype=np.float32, count=int(lengths.sum()))
    width = max(depth, int(lengths.max(initial=0)))
    matrix = np.full((len(rows), width), np.nan, dtype=np.float32)
    matrix[np.arange(width) < lengths[:, None]] = np.where(flat < 0, np.nan, flat)
    return matrix[:, :depth]


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenated along the first axis; the second is widened with NaN where it differs."""
    if arrays[0].ndim > 1:
        width = max(array.shape[1] for array in arrays)
        arrays = [
            np.pad(a, ((0, 0), (0, width - a.shape[1]), (0, 0)), constant_values=np.nan)
            for a in arrays
        ]
    return np.concatenate(arrays)
