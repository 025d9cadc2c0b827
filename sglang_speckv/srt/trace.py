"""The trace writer: rounds go into a bounded queue, a thread turns them into records on disk.

The serving thread only puts references into the queue; a full queue drops the round and counts
it. The compressed stream is flushed every second, so that after a kill -9 everything up to the
last flush can be read. Trouble with the disk ends the trace, not the server. A full file is
followed by another, and the oldest of this server's files is deleted once there are too many.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import queue
import socket
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from sglang_speckv.config import ConfigError
from sglang_speckv.offline.records import Header, Record
from sglang_speckv.policy.checks import is_share, is_time
from sglang_speckv.srt.rounds import FinishedRound

logger = logging.getLogger(__name__)

CAPACITY = 4096
"""Rounds that may wait for the disk."""
FLUSH_SECONDS = 1.0
DIGITS = 5
FILE_BYTES = 64 << 20
"""Compressed size from which the next file is begun: about 1.3 million records."""
FILES = 16
"""Files that are kept: 1 GiB in all."""
ID_CHARS = 128
"""Of a request's id, which a client may choose as long as it likes."""


def check_directory(path: str) -> None:
    """Create ``path`` if need be; raise :class:`ConfigError` where nothing can be written."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        probe = Path(path) / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"--speckv-trace {path!r} cannot be written ({error.strerror}); name another folder"
        ) from error


class TraceWriter:
    """Writes one server's trace; see :mod:`sglang_speckv.offline.records`."""

    def __init__(self, directory: str, header: Header, capacity: int = CAPACITY) -> None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        host = "".join(c if c.isalnum() else "-" for c in socket.gethostname())
        self._stem = f"{stamp}-{host}-{os.getpid()}"  # nodes may share the folder
        self._directory = Path(directory)
        self._files: deque[Path] = deque()
        self.written = 0
        self.dropped = 0
        self.failed = ""
        self._told = False
        self._round = 0
        self._header = header
        self._queue: queue.Queue[_Item | None] = queue.Queue(capacity)
        self._thread = threading.Thread(target=self._run, name="speckv-trace", daemon=True)
        self._thread.start()

    def write(self, done: FinishedRound, policy: str, log_vocab: float) -> None:
        """Take a finished round; never blocks."""
        self._round += 1
        if self.failed:
            self.dropped += 1
            return
        try:
            self._queue.put_nowait((self._round, policy, log_vocab, done))
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Write what is queued and end the file; at once where writing has failed."""
        while self._thread.is_alive():
            try:
                self._queue.put(None, timeout=0.1)
                break
            except queue.Full:
                continue
        self._thread.join()

    def snapshot(self) -> dict[str, Any]:
        return {
            "path": str(self._files[-1]) if self._files else None,
            "records": self.written,
            "dropped_rounds": self.dropped,
            "failed": self.failed or None,
        }

    def _run(self) -> None:
        try:
            number = 1
            while self._write_file(self._directory / f"{self._stem}-{number:04}.jsonl.gz"):
                number += 1
        except Exception as error:
            self.failed = f"{error}" or repr(error)
            logger.error("SpecKV: the trace in %s ends here (%r)", self._directory, error)

    def _write_file(self, path: Path) -> bool:
        """One file until it is full (True) or the writer is closed (False)."""
        with path.open("xb") as file:
            self._keep(path)
            deflate = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS | 16)
            file.write(deflate.compress(_line(self._header)))
            open_ended = self._write_rounds(file, deflate)
            file.write(deflate.flush())
        return open_ended

    def _keep(self, path: Path) -> None:
        self._files.append(path)
        if len(self._files) > FILES:
            self._files.popleft().unlink(missing_ok=True)

    def _write_rounds(self, file: IO[bytes], deflate: Any) -> bool:
        flushed = 0.0
        while file.tell() < FILE_BYTES:
            try:
                item = self._queue.get(timeout=FLUSH_SECONDS)
                if item is None:
                    return False
                for record in self._records(item):
                    file.write(deflate.compress(record))
                    self.written += 1
            except queue.Empty:
                pass
            if time.monotonic() - flushed > FLUSH_SECONDS:
                file.write(deflate.flush(zlib.Z_SYNC_FLUSH))
                file.flush()
                flushed = time.monotonic()
        return True

    def _records(self, item: _Item) -> list[bytes]:
        """A round's lines, all or none: one that cannot be told is dropped and counted."""
        try:
            return [_line(record) for record in _records(*item)]
        except Exception as error:
            if not self._told:
                self._told = True
                logger.error("SpecKV: a round could not be traced (%r)", error)
            self.dropped += 1
            return []


_Item = tuple[int, str, float, FinishedRound]


def _line(struct: msgspec.Struct) -> bytes:
    return msgspec.json.encode(struct) + b"\n"


def _records(number: int, policy: str, log_vocab: float, done: FinishedRound) -> Iterator[Record]:
    outcome, launch = done.outcome, done.launch
    decision = launch.decision
    signals = outcome.signals
    if signals is None:
        signals = np.zeros((len(done.live), 0, 2))
    # An exact round's time is also of requests that have no record.
    seconds = None if launch.exact else _time(outcome.seconds)
    for i, row in enumerate(done.live):
        req = launch.reqs[row]
        yield Record(
            round=number,
            request=bounded_id(str(req.rid)),
            batch_size=outcome.batch_size,
            context_len=done.context_lens[i],
            num_steps=launch.shape.num_steps,
            num_correct_drafts=outcome.num_correct_drafts[i],
            top1_prob=_probs(signals[i, :, 0]),
            entropy=_rounded(signals[i, :, 1] * log_vocab),
            first_prob=_known(outcome.first_probs, i),
            seconds=seconds,
            sampled=req.sampling_params.temperature > 0 and req.sampling_params.top_k != 1,
            asleep=outcome.asleep,
            stopped=outcome.stopped,
            num_verified=outcome.made if outcome.widths is None else int(outcome.widths[i]),
            policy=policy,
            reason=decision.reason if decision else "pinned",
            expected_accept_length=decision.expected_accept_length if decision else None,
            num_draft_tokens=None if outcome.nodes is None else launch.shape.num_draft_tokens,
            nodes=() if outcome.nodes is None else _nodes(outcome.nodes[i]),
        )


def bounded_id(rid: str) -> str:
    """``rid`` in at most ID_CHARS characters that can be encoded; a hash keeps cut ones apart."""
    clean = rid.encode("utf-8", "replace")
    if len(rid) <= ID_CHARS:
        return clean.decode()
    return f"{clean.decode()[: ID_CHARS - 17]}~{hashlib.sha256(clean).hexdigest()[:16]}"


def _probs(values: np.ndarray) -> tuple[float, ...]:
    """-1 at positions without a signal, and where it is no probability."""
    return tuple(round(min(v, 1.0), DIGITS) if is_share(v) else -1.0 for v in values.tolist())


def _nodes(nodes: np.ndarray) -> tuple[tuple[float, int, int], ...]:
    """Nothing where one of them is unknown."""
    if not is_share(nodes[:, 0]).all():
        return ()
    probs, levels, accepted = nodes.T.tolist()
    return tuple(
        (round(min(prob, 1.0), DIGITS), int(level), int(right))
        for prob, level, right in zip(probs, levels, accepted, strict=True)
    )


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    """JSON has neither NaN nor infinity: positions without a signal become -1."""
    return tuple(round(v, DIGITS) if math.isfinite(v) else -1.0 for v in values.tolist())


def _known(values: np.ndarray | None, i: int) -> float | None:
    (prob,) = (-1.0,) if values is None else _probs(values[i : i + 1])
    return None if prob < 0.0 else prob


def _time(seconds: float | None) -> float | None:
    """None where it is impossible: a reader would refuse the whole trace."""
    return (round(seconds, 6) or None) if is_time(seconds) else None
