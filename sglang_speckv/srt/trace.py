"""The trace writer: rounds go into a bounded queue, a thread turns them into records on disk.

The serving thread only puts references into the queue; a full queue drops the round and counts
it. The compressed stream is flushed every second, so that after a kill -9 everything up to the
last flush can be read. Trouble with the disk ends the trace, not the server.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from sglang_speckv.config import ConfigError
from sglang_speckv.offline.records import Header, Record
from sglang_speckv.srt.rounds import FinishedRound

logger = logging.getLogger(__name__)

CAPACITY = 4096
"""Rounds that may wait for the disk."""
FLUSH_SECONDS = 1.0
DIGITS = 5


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
    """Writes one file of a trace; see :mod:`sglang_speckv.offline.records`."""

    def __init__(self, directory: str, header: Header, capacity: int = CAPACITY) -> None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        self.path = Path(directory) / f"{stamp}-{os.getpid()}.jsonl.gz"
        self.written = 0
        self.dropped = 0
        self.failed = ""
        self._round = 0
        self._header = header
        self._queue: queue.Queue[tuple[int, str, float, FinishedRound] | None] = queue.Queue(
            capacity
        )
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
        """Write what is queued and end the file."""
        self._queue.put(None)
        self._thread.join()

    def snapshot(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "records": self.written,
            "dropped_rounds": self.dropped,
            "failed": self.failed or None,
        }

    def _run(self) -> None:
        try:
            with self.path.open("xb") as file:
                self._write_all(file)
        except OSError as error:
            self.failed = f"{error}"
            logger.error("SpecKV: the trace ends here, %s cannot be written (%s)", self.path, error)

    def _write_all(self, file: IO[bytes]) -> None:
        deflate = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS | 16)
        file.write(deflate.compress(_line(self._header)))
        flushed = 0.0
        while True:
            try:
                item = self._queue.get(timeout=FLUSH_SECONDS)
            except queue.Empty:
                item = ()  # type: ignore[assignment]
            if item is None:
                file.write(deflate.flush())
                return
            if item:
                for record in _records(*item):
                    file.write(deflate.compress(_line(record)))
                    self.written += 1
            if time.monotonic() - flushed > FLUSH_SECONDS:
                file.write(deflate.flush(zlib.Z_SYNC_FLUSH))
                file.flush()
                flushed = time.monotonic()


def _line(struct: msgspec.Struct) -> bytes:
    return msgspec.json.encode(struct) + b"\n"


def _records(number: int, policy: str, log_vocab: float, done: FinishedRound) -> Iterator[Record]:
    outcome, launch = done.outcome, done.launch
    decision = launch.decision
    signals = np.zeros((0,)) if outcome.signals is None else outcome.signals
    for i, row in enumerate(done.live):
        req = launch.reqs[row]
        yield Record(
            round=number,
            request=str(req.rid),
            batch_size=outcome.batch_size,
            context_len=done.context_lens[i],
            num_steps=outcome.num_steps,
            num_correct_drafts=outcome.num_correct_drafts[i],
            top1_prob=_rounded(signals[i, :, 0]),
            entropy=_rounded(signals[i, :, 1] * log_vocab),
            first_prob=_known(outcome.first_probs, i),
            seconds=None if outcome.seconds is None else round(outcome.seconds, 6),
            sampled=req.sampling_params.temperature > 0 and req.sampling_params.top_k != 1,
            asleep=outcome.asleep,
            policy=policy,
            reason=decision.reason if decision else "pinned",
            expected_accept_length=decision.expected_accept_length if decision else None,
        )


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    """JSON has no NaN: positions without a signal become -1."""
    return tuple(-1.0 if v != v else round(v, DIGITS) for v in values.tolist())


def _known(values: np.ndarray | None, i: int) -> float | None:
    if values is None or math.isnan(values[i]):
        return None
    return round(float(values[i]), DIGITS)
