"""What a draft would do from each position of some answers: what a replay goes through.

**Walked**: every position of the target's own answers is there. A round that begins where ``s``
tokens of an answer are out drafts the tokens after them; how many of its drafts the target takes
does not depend on how those ``s`` came about. So the next round begins wherever this one ended, at
whichever depth. ``examples/record_positions.py`` makes such files.

**Recorded**: the rounds that an engine served, read from its trace. Where another depth would have
ended is not on record, so the next round is taken as recorded. That flatters every policy that
adapts: a trace of depth 7 books an easy run of tokens as one round, for which a shallow depth would
have needed several cheap ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from sglang_speckv.config import MAX_NUM_STEPS, ConfigError
from sglang_speckv.files import BAD_JSON, read_bounded, write_atomically
from sglang_speckv.offline.columns import Columns

SUFFIX = ".safetensors"
_MAX_BYTES = 1 << 30
_REMEDY = "make it again with examples/record_positions.py"


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose positions these are; ``requests`` are (class, prompt)."""

    target: str
    draft: str
    algorithm: str
    requests: tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)
class Positions:
    """Positions of all requests, one after another: request i has the rows ``start[i]:start[i+1]``.

    Per row [n]: ``correct`` counts the drafts that the target takes, of a chain of ``depth``;
    ``context`` counts the tokens before it. ``signals`` [n, depth, 2]: each draft's top-1
    probability, and its entropy over the log of the draft's vocabulary; NaN where unknown. Where
    ``walked``, the rows of a request are one token apart, and from the last one a single token is
    still to come.
    """

    source: Source
    walked: bool
    start: np.ndarray
    correct: np.ndarray
    context: np.ndarray
    signals: np.ndarray

    def __len__(self) -> int:
        return len(self.correct)

    @property
    def depth(self) -> int:
        return int(self.signals.shape[1])

    @property
    def labels(self) -> np.ndarray:
        """The class of each request, as a number."""
        return np.unique([kind for kind, _ in self.source.requests], return_inverse=True)[1]


def write_positions(
    path: Path,
    source: Source,
    prompt_len: Sequence[int],
    start: np.ndarray,
    correct: np.ndarray,
    signals: np.ndarray,
) -> None:
    """A file of walked positions; ``prompt_len`` [requests] in tokens, the rest as above."""
    arrays = {
        "prompt_len": np.asarray(prompt_len, dtype=np.int64),
        "start": start.astype(np.int64),
        "correct": correct.astype(np.uint8),
        "signals": signals.astype(np.float16),
    }
    about = {"speckv": msgspec.json.encode(source).decode()}
    write_atomically(path, lambda scratch: scratch.write_bytes(save(arrays, about)))


def read_positions(path: Path) -> Positions:
    """
    Raises:
        ConfigError: it is no such file, or what it holds contradicts itself.
    """
    content = read_bounded(path, _MAX_BYTES, _REMEDY)
    try:
        arrays, source = load(content), _source(content)
        names = ("prompt_len", "start", "correct", "signals")
        prompt_len, start, correct, signals = (arrays[name] for name in names)
        reason = _contradiction(source, prompt_len, start, correct, signals)
    except (SafetensorError, KeyError, TypeError, *BAD_JSON) as error:
        raise ConfigError(f"{path} holds no positions ({error}); {_REMEDY}") from None
    if reason:
        raise ConfigError(f"{path}: {reason}; {_REMEDY}")
    n, lengths = len(correct), np.diff(start)
    context = np.repeat(prompt_len + 1 - start[:-1], lengths) + np.arange(n)
    return Positions(
        source,
        True,
        start,
        correct.astype(np.int64),
        context,
        signals.astype(np.float32),
    )


def from_trace(columns: Columns, depth: int) -> Positions:
    """The recorded rounds of each request in its own order: those that were drafted to ``depth`` at
    least, so that what every depth up to it would have brought is on record.

    Raises:
        ConfigError: there is none.
    """
    columns = columns.only(columns.num_verified >= depth)
    if not len(columns):
        raise ConfigError(
            f"no recorded round was drafted to depth {depth}; give fewer --candidate-steps, or "
            f"record with --speckv-policy static:{depth}"
        )
    order = np.lexsort((columns.round, columns.request))
    _, first = np.unique(columns.request[order], return_index=True)
    names = tuple(
        (columns.labels[label], columns.prompts[prompt])
        for label, prompt in zip(
            columns.label[order[first]].tolist(), columns.prompt[order[first]].tolist(), strict=True
        )
    )
    header = columns.header
    return Positions(
        Source(header.target, header.draft, header.algorithm, names),
        False,
        np.append(first, len(order)),
        columns.num_correct_drafts[order],
        columns.context_len[order],
        columns.signals[order],
    )


def _source(content: bytes) -> Source:
    class Header(msgspec.Struct):
        metadata: dict[str, str] = msgspec.field(name="__metadata__")

    size = int.from_bytes(content[:8], "little")
    header = msgspec.json.decode(content[8 : 8 + size], type=Header)
    return msgspec.json.decode(header.metadata["speckv"], type=Source)


def _contradiction(
    source: Source,
    prompt_len: np.ndarray,
    start: np.ndarray,
    correct: np.ndarray,
    signals: np.ndarray,
) -> str:
    requests = len(source.requests)
    if not requests or prompt_len.shape != (requests,) or start.shape != (requests + 1,):
        return "its requests are not those that its description names"
    if start[0] != 0 or (np.diff(start) < 1).any() or correct.shape != (start[-1],):
        return "it has a request without a position, or positions of no request"
    depth = signals.shape[1] if signals.ndim == 3 else 0
    if signals.shape != (len(correct), depth, 2) or not 1 <= depth <= MAX_NUM_STEPS:
        return f"its chains are not [{len(correct)}, 1..{MAX_NUM_STEPS}, 2]"
    if (correct > signals.shape[1]).any() or (prompt_len < 0).any():
        return "it counts more correct drafts than were made, or a prompt of no length"
    if not ((signals >= 0) & (signals <= 1)).all():
        return "it holds a probability that is none"
    return ""
