"""One decision of one policy laid open: what it saw, expected and chose, and what came of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from sglang_speckv.config import ConfigError, static_steps
from sglang_speckv.policy import Batch, Decision, StepPolicy, create_policy
from sglang_speckv.replay.arms import INITIAL_STEPS, POLICIES, Setting
from sglang_speckv.replay.play import play


def explain(name: str, at: Setting, number: int) -> dict[str, Any]:
    """Replay ``name`` up to the round and say why it chose as it did.

    ``number`` is the round's number in the trace (the first file that has it), or its place where
    requests were regrouped. Raises :class:`ConfigError`.
    """
    place = _place(at, number)
    seen: dict[str, Any] = {}

    def witness(i: int, batch: Batch, decision: Decision, policy: StepPolicy) -> None:
        if i == place:
            explained = getattr(policy, "explain", None)
            seen["saw"] = _saw(batch, int(at.rounds.context_len[i]))
            seen["chose"] = _decision(decision)
            seen["because"] = explained(batch) if explained else None
            seen["state"] = policy.snapshot()

    play(_policy(name, at), at.rounds, at.table, at.lag, stop=place + 1, witness=witness)
    tier = at.tiers.index(seen["chose"]["num_steps"])
    return {"policy": name, "round": number, "place": place, **seen, "came": _came(at, place, tier)}


def _policy(name: str, at: Setting) -> StepPolicy:
    if name in POLICIES:
        return POLICIES[name](at)
    if static_steps(name) is None:
        raise ConfigError(f"--explain needs a policy; {name!r} decides nothing round by round")
    return create_policy(name, at.tiers, INITIAL_STEPS)


def _place(at: Setting, number: int) -> int:
    rounds = at.rounds
    if rounds.regrouped:
        if not 0 <= number < len(rounds):
            raise ConfigError(f"--explain {number}: the replay has rounds 0..{len(rounds) - 1}")
        return number
    numbers = rounds.columns.round[rounds.row[rounds.start[:-1]]]
    places = np.flatnonzero(numbers == number)
    if not len(places):
        raise ConfigError(
            f"--explain {number}: the trace has no such round, only {numbers.min()}.."
            f"{numbers.max()}"
        )
    return int(places[0])


def _saw(batch: Batch, context_len: int) -> dict[str, Any]:
    first = None if batch.first_probs is None else np.round(batch.first_probs, 4).tolist()
    return {
        "batch_size": batch.size,
        "context_len": context_len,
        "first_probs": first and [None if p != p else p for p in first],
    }


def _decision(decision: Decision) -> dict[str, Any]:
    return {
        "num_steps": decision.num_steps,
        "reason": decision.reason,
        "expected_accept_length": decision.expected_accept_length,
    }


def _came(at: Setting, place: int, tier: int) -> dict[str, Any]:
    """Per depth the tokens of the whole batch (None: not on record) and the round's seconds."""
    table = at.table
    tokens = [
        int(n) if known else None
        for n, known in zip(table.tokens[place], table.known[place], strict=True)
    ]
    return {
        "tokens": dict(zip(map(str, at.tiers), tokens, strict=True)),
        "seconds": dict(
            zip(map(str, at.tiers), table.seconds[place].round(6).tolist(), strict=True)
        ),
        "tokens_at_choice": tokens[tier],
    }


def lines(explained: dict[str, Any]) -> list[str]:
    """For a terminal: a line per fact, a row per depth."""
    saw, chose, came = explained["saw"], explained["chose"], explained["came"]
    expected = chose["expected_accept_length"]
    text = [
        f"round {explained['round']} as {explained['policy']} met it",
        f"  saw      batch of {saw['batch_size']}, context of {saw['context_len']} tokens, first "
        f"probabilities {_short(saw['first_probs'])}",
        f"  chose    depth {chose['num_steps']} ({chose['reason']}), expecting "
        + ("nothing in particular" if expected is None else f"{expected:.2f} tokens per request"),
    ]
    because = explained["because"] or explained["state"]
    text += [f"  {key:<18} {_short(value)}" for key, value in because.items()]
    text.append("  what each depth would have brought:")
    text += [
        f"    depth {k:>2}  {'not on record' if n is None else f'{n:>4} tokens'}  in "
        f"{came['seconds'][k]:.4g}"
        for k, n in came["tokens"].items()
    ]
    return text


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "  ".join(f"{key}: {_short(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        shown = [_short(item) for item in value[:16]]
        return ", ".join(shown) + (f", ... ({len(value)})" if len(value) > 16 else "")
    return "unknown" if value is None else str(value)
