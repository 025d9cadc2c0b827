"""The recommendation in words, from the record alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from sglang_speckv.ab.answer import Record, shown
from sglang_speckv.ab.intervals import MIN_BLOCKS

PAYS = "pays"
LEVEL = "makes no difference that shows"
LOSES = "does not pay"
UNKNOWN = "was run too little to say whether it pays"


def answer(record: Record) -> list[str]:
    """One sentence or two for each question: what to serve with, whether the draft pays, what to
    doubt."""
    loads = record["loads"]
    artifact = f" {record['artifact']}" if record["artifact"] else ""
    return [
        f"Serve with --speckv{artifact}. If the depth must be fixed: {fixed(loads)}.",
        f"{_acceptance(record)}; this draft {paying(loads)}.",
        *_doubts(record),
    ]


def fixed(loads: Sequence[Record]) -> str:
    """``3 up to 4 requests, 1 above``: the fastest depth of each load, in ascending order."""
    groups = [(best, list(of)) for best, of in groupby(loads, key=lambda load: load["best"])]
    if len(groups) == 1:
        return f"{_drafts(groups[0][0])} at every load"
    said = []
    for best, of in groups[:-1]:
        most = of[-1]["concurrency"]
        said.append(f"{_drafts(best)} {'at' if most == 1 else 'up to'} {_requests([most])}")
    return ", ".join([*said, f"{_drafts(groups[-1][0])} above"])


def paying(loads: Sequence[Record]) -> str:
    """``pays at 1 and 4 requests (1.45 [1.38, 1.52] and 1.20 [1.11, 1.30] of depth 0), ...``."""
    parts = []
    for kind in (PAYS, LEVEL, LOSES, UNKNOWN):
        ours = [load for load in loads if verdict(load) == kind]
        if ours:
            ratios = [shown(**load["over_depth_0"]) for load in ours]
            at = _requests([load["concurrency"] for load in ours])
            parts.append(f"{kind} at {at} ({_and(ratios)} of depth 0)")
    return ", ".join(parts) or "was not compared with depth 0"


def verdict(load: Record) -> str | None:
    """Whether the fastest depth with drafts is ahead of depth 0; None where they were not
    compared."""
    over = load["over_depth_0"]
    if over is None:
        return None
    if over["interval"] is None:
        return UNKNOWN
    low, high = over["interval"]
    if low > 1:
        return PAYS
    return LOSES if high < 1 else LEVEL


def _acceptance(record: Record) -> str:
    first = record["survival"][0]["survival"][0]
    depth = max(load["best"] for load in record["loads"])
    row = next(row for row in record["tokens"] if row["num_steps"] == depth)
    tokens = row["measured"] or row["expected"]
    brings = f", a round of depth {depth} brings {tokens:.2f} tokens" if depth else ""
    return f"{first:.0%} of the first drafts are right{brings}"


def _doubts(record: Record) -> Iterator[str]:
    loads = record["loads"]
    for load in loads:
        predicted = load["predicted_best"]
        if _blocks(load) >= MIN_BLOCKS and predicted not in (None, load["best"], *load["level"]):
            yield (
                f"At {_requests([load['concurrency']])} the formula picks depth {predicted} and "
                f"the measurement {load['best']}; the measurement decides."
            )
    few = [load["concurrency"] for load in loads if _blocks(load) < MIN_BLOCKS]
    if few:
        yield (
            f"At {_requests(few)} there are fewer than {MIN_BLOCKS} blocks, so nothing says how "
            "sure the depths are; the same command with more --minutes goes on."
        )
    zeros = [row["asleep"] for load in loads for row in load["depths"] if row["num_steps"] == 0]
    known = [asleep for asleep in zeros if asleep is not None]
    if not known:
        yield (
            "Depth 0 is this server without drafts, not a server without a draft: speckv ab has "
            "that arm."
        )
    elif all(known):
        yield (
            "Depth 0 is this server with its draft asleep, not a server without one, which may be "
            "scheduled in another way: speckv ab has that arm."
        )
    else:
        yield (
            "Depth 0 is this server without drafts. Its draft still reads every token, so a server "
            "without one is faster than that: speckv ab has that arm."
        )


def _drafts(depth: int) -> str:
    return str(depth) if depth else "no drafts"


def _blocks(load: Record) -> int:
    return min(row["blocks"] for row in load["depths"])


def _requests(counts: Sequence[int]) -> str:
    return f"{_and(list(map(str, counts)))} request{'s' * (list(counts) != [1])}"


def _and(words: Sequence[str]) -> str:
    *before, last = words
    return f"{', '.join(before)} and {last}" if before else last
