"""The trace: one record per request and round, as compressed JSON lines, and how to read it.

A trace is a directory of ``*.jsonl.gz`` files; a server that fills one begins another. A file's
first line is a :class:`Header`, every other one a :class:`Record`. Files are flushed at record
boundaries, so what a killed server left behind is readable up to its last flush.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from sglang_speckv.config import ConfigError
from sglang_speckv.files import BAD_JSON

SCHEMA_VERSION = 1
MAX_LINE_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 16


class Header(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whose rounds these are. Names and types are those of the engine's own settings. Either
    ``candidate_steps`` or, of trees, ``candidate_shapes`` and their ``topk`` are given."""

    schema: int = SCHEMA_VERSION
    target: str
    draft: str
    algorithm: str
    draft_vocab_size: int
    candidate_steps: tuple[int, ...] = ()
    candidate_shapes: tuple[str, ...] = ()
    topk: int = 1
    quantization: str | None = None
    draft_quantization: str | None = None
    dtype: str = ""
    kv_cache_dtype: str = ""
    device: str = ""
    sglang: str = ""
    speckv: str = ""
    policy: str = ""
    signal_lag: str = ""
    overlap: bool = False
    tp_size: int = 1
    created: str = ""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request in one decode round.

    ``request`` is the engine's request id. Where a client sets it as ``LABEL:PROMPT:ANYTHING``
    the first part is taken for the class and the second for the prompt (see :meth:`label`).
    ``top1_prob`` and ``entropy`` (nats) have one entry per draft position, ``num_steps`` in all;
    empty where nothing tapped the draft, -1 at a position without a signal. ``first_prob`` is what
    the decision saw of this request. ``seconds`` is the round's wall time, None where it was not
    clean. ``context_len`` is this request's length in tokens before the round. ``asleep``: at depth
    0 the draft was left out. ``stopped``: the round ended before the depth that was decided, by
    what its own drafts said. ``num_verified``: how many of the drafts were verified, None for all;
    of a round that a device stopped within its depth, those that it made.

    Of a tree ``num_draft_tokens`` were verified, the newest token counted, and ``nodes`` are the
    drafts among them: the joint probability of the path to each, its level from 1 on, and 1 where
    it was accepted, else 0; empty where nothing tapped the draft.
    """

    round: int
    request: str
    batch_size: int
    context_len: int
    num_steps: int
    num_correct_drafts: int
    top1_prob: tuple[float, ...] = ()
    entropy: tuple[float, ...] = ()
    first_prob: float | None = None
    seconds: float | None = None
    sampled: bool = False
    asleep: bool = False
    stopped: bool = False
    num_verified: int | None = None
    policy: str = ""
    reason: str = ""
    expected_accept_length: float | None = None
    num_draft_tokens: int | None = None
    nodes: tuple[tuple[float, int, int], ...] = ()

    @property
    def label(self) -> str:
        """The class a client named, or ``""``."""
        parts = self.request.split(":")
        return parts[0] if len(parts) >= 3 else ""

    @property
    def prompt(self) -> str:
        """What belongs together when data are split: the prompt, or the request itself."""
        parts = self.request.split(":")
        return f"{parts[0]}:{parts[1]}" if len(parts) >= 3 else self.request


def trace_files(path: Path) -> list[Path]:
    """The files of a trace directory, or the one file that ``path`` is."""
    files = sorted(path.glob("*.jsonl.gz")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise ConfigError(f"{path} holds no trace (*.jsonl.gz); serve with --speckv-trace DIR")
    return files


def trace_hashes(traces: Iterable[Path]) -> list[dict[str, str]]:
    """``name`` and ``sha256`` of every file of some traces: what a figure or an artifact is of."""
    found = []
    for file in (file for trace in traces for file in trace_files(trace)):
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        found.append({"name": file.name, "sha256": digest})
    return found


def read_trace(path: Path) -> tuple[Header, Iterator[Record]]:
    """The header and the records of one file; a tail that was cut off is left out.

    Raises:
        ConfigError: not a trace, another schema version, or a line that is not a record.
    """
    lines = _lines(path)
    first = next(lines, None)
    if first is None:
        raise ConfigError(f"{path} holds no complete line of a trace")
    try:
        header = msgspec.json.decode(first, type=Header)
    except BAD_JSON as error:
        raise ConfigError(f"{path} does not start with a trace header ({error})") from error
    if header.schema != SCHEMA_VERSION:
        raise ConfigError(
            f"{path} has trace schema {header.schema}, this version reads {SCHEMA_VERSION}"
        )
    return header, _records(path, lines)


def _records(path: Path, lines: Iterator[bytes]) -> Iterator[Record]:
    decoder = msgspec.json.Decoder(Record)
    for number, line in enumerate(lines, start=2):
        try:
            yield decoder.decode(line)
        except BAD_JSON as error:
            raise ConfigError(f"{path} line {number} is not a trace record ({error})") from error


def _lines(path: Path) -> Iterator[bytes]:
    """Complete lines; stops quietly where the compressed stream breaks off."""
    rest = b""
    for piece in _inflated(path):
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
        if len(rest) > MAX_LINE_BYTES:
            raise ConfigError(f"{path} has a line of more than {MAX_LINE_BYTES} bytes")


def _inflated(path: Path) -> Iterable[bytes]:
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 16)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            while chunk:
                try:
                    piece = inflate.decompress(chunk, 16 * _CHUNK_BYTES)
                except zlib.error:
                    return
                yield piece
                chunk = inflate.unconsumed_tail
                if inflate.eof:
                    return
