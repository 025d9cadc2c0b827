"""What a comparison runs: drafts x arms on servers, and which prompts in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sglang_speckv.bench.prompts import Prompt

NO_DRAFT = "shared"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Draft:
    """A draft checkpoint under the name that the tables show."""

    name: str
    path: Path
    algorithm: str


@dataclass(frozen=True)
class Arm:
    """One way to serve. ``policy`` is switched to before each of its blocks, if it has one."""

    draft: str
    name: str
    server: str
    policy: str | None = None


@dataclass(frozen=True)
class ServerSpec:
    """A server by name and the flags that make it different from the others."""

    name: str
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """The unit of comparison: the same prompts for every arm, run to the end."""

    index: int
    concurrency: int
    prompts: tuple[Prompt, ...]


def servers_for(drafts: Sequence[Draft]) -> list[ServerSpec]:
    """One without drafting, and per draft one with SpecKV and, where SGLang can, its own
    adaptive rule."""
    specs = [ServerSpec("none", ())]
    for draft in drafts:
        speculative = (
            *("--speculative-algorithm", draft.algorithm),
            *("--speculative-draft-model-path", str(draft.path)),
        )
        specs.append(ServerSpec(f"{draft.name}-speckv", (*speculative, "--speckv")))
        if has_ema(draft):
            ema = (*speculative, "--speculative-adaptive")
            specs.append(ServerSpec(f"{draft.name}-ema", ema))
    return specs


def arms_for(drafts: Sequence[Draft], static_steps: Sequence[int] = (1, 3, 5)) -> list[Arm]:
    arms = [Arm(NO_DRAFT, "none", "none")]
    for draft in drafts:
        speckv = f"{draft.name}-speckv"
        policies = [f"static:{steps}" for steps in static_steps]
        arms += [Arm(draft.name, policy, speckv, policy) for policy in policies]
        if has_ema(draft):
            arms.append(Arm(draft.name, "ema", f"{draft.name}-ema"))
        arms.append(Arm(draft.name, "speckv", speckv, "throughput"))
    return arms


def has_ema(draft: Draft) -> bool:
    """SGLang's own adaptive rule exists for the EAGLE family only."""
    return draft.algorithm in ("EAGLE", "EAGLE3")


def block(index: int, concurrency: int, prompts: Sequence[Prompt]) -> Block:
    """The ``index``-th block: the next ``concurrency`` prompts of the cycle.

    ``prompts`` have their classes in turn (:func:`~sglang_speckv.bench.prompts.load_prompts`).
    """
    start = index * concurrency
    chosen = (prompts[(start + i) % len(prompts)] for i in range(concurrency))
    return Block(index, concurrency, tuple(chosen))


def rotated(items: Sequence[_T], turn: int) -> list[_T]:
    """Every item visits every place, and every second turn runs backwards, so that neither the
    place nor the predecessor favours one."""
    offset = turn % len(items)
    order = [*items[offset:], *items[:offset]]
    return order[::-1] if turn % 2 else order


def schedule(
    index: int, arms: Sequence[Arm], concurrencies: Sequence[int], prompts: Sequence[Prompt]
) -> Iterator[tuple[Block, Arm]]:
    """Round ``index``: every arm at every concurrency, one block each."""
    for turn, concurrency in enumerate(concurrencies, index * len(concurrencies)):
        current = block(index, concurrency, prompts)
        for arm in rotated(arms, turn):
            yield current, arm
