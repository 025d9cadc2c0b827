"""One decision of one policy laid open: what it saw, expected and chose, and what came of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from sglang_speckv.config import ConfigError
from sglang_speckv.policy import Batch, Decision
from sglang_speckv.replay.arms import policy_of
from sglang_speckv.replay.run import ReplayOptions, prepare, walk_of
from sglang_speckv.replay.walk import Walk, play

_WEIGHED = ("tokens", "ms", "worth")
"""What a policy expects of each depth, where it says so."""


def explain(options: ReplayOptions, number: int) -> dict[str, Any]:
    """Replay the first policy at the first load up to a round, counted from 0, and say why it chose
    as it did. Raises :class:`ConfigError`."""
    name, size = (options.policies or ("throughput",))[0], options.requests[0]
    at = prepare(options)
    profile = at.profile(size) if options.profiled else ()
    policy: Any = policy_of(name, at.tiers, at.prior, profile, options.captured)
    price = at.price(size)
    seen: dict[str, Any] = {}

    def witness(i: int, batch: Batch, decision: Decision, walk: Walk) -> None:
        if i == number:
            explained = getattr(policy, "explain", policy.snapshot)
            first = [] if batch.first_probs is None else np.round(batch.first_probs, 4).tolist()
            tokens = np.minimum(walk.correct()[:, None], np.array(at.tiers)).sum(axis=0) + size
            seen.update(
                saw={
                    "batch_size": batch.size,
                    "context_len": int(walk.positions.context[walk.row].sum()),
                    "first_probs": [None if p != p else p for p in first],
                },
                chose={
                    "num_steps": decision.num_steps,
                    "reason": decision.reason,
                    "expected_accept_length": decision.expected_accept_length,
                },
                because=explained(),
                came={
                    "tokens": dict(zip(map(str, at.tiers), tokens.tolist(), strict=True)),
                    "seconds": {str(k): round(s, 6) for k, s in price.seconds.items()},
                },
            )

    played = play(
        policy,
        walk_of(at, options, size, seed=0),
        price,
        options.lag,
        np.random.default_rng([0, 1]),
        number + 1,
        witness,
        options.captured,
    )
    if not seen:
        raise ConfigError(f"--explain {number}: the replay has rounds 0..{len(played.seconds) - 1}")
    return {"policy": name, "requests": size, "round": number, **seen}


def lines(explained: dict[str, Any]) -> list[str]:
    """For a terminal: a line per fact, a row per depth."""
    saw, chose, came = explained["saw"], explained["chose"], explained["came"]
    expected = chose["expected_accept_length"]
    text = [
        f"round {explained['round']} as {explained['policy']} met it",
        f"  saw      requests: {saw['batch_size']}  tokens so far: {saw['context_len']}  first "
        f"probabilities: {_short(saw['first_probs'])}",
        f"  chose    depth {chose['num_steps']} ({chose['reason']}), expecting "
        + ("nothing in particular" if expected is None else f"{expected:.2f} tokens per request"),
    ]
    told = dict(explained["because"])
    weighed = told.pop("depths", {})
    text += [f"  {key:<18} {_short(item)}" for key, item in told.items() if key not in chose]
    heading = f"{'depth':>9}" + "".join(f"{word:>10}" for word in (*_WEIGHED, "brought", "took ms"))
    return [
        *text,
        heading,
        *(
            f"{k:>9}"
            + "".join(f"{weighed.get(k, {}).get(word, ''):>10}" for word in _WEIGHED)
            + f"{brought:>10}{1e3 * came['seconds'][k]:>10.4g}"
            for k, brought in came["tokens"].items()
        ),
    ]


def _short(item: Any) -> str:
    if isinstance(item, float):
        return f"{item:.4g}"
    if isinstance(item, dict):
        return "  ".join(f"{key}: {_short(inner)}" for key, inner in item.items())
    if isinstance(item, list | tuple):
        shown = [_short(inner) for inner in item[:16]]
        return ", ".join(shown) + (f", ... ({len(item)})" if len(item) > 16 else "")
    return "unknown" if item is None else str(item)
