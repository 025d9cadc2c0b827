"""The answer in a sentence: what SpecKV brought, and whether the text stayed the same."""

from __future__ import annotations

from sglang_speckv.ab.runner import Outcome
from sglang_speckv.ab.sampled import LEAST_P
from sglang_speckv.ab.verdict import NOT_INFERIOR, RESTATED, Judgement, Sweep

SPECKV = "speckv"


def answers(outcome: Outcome, found: Judgement) -> list[str]:
    """One for each draft and kind of traffic that ``speckv`` served."""
    lines = []
    for sweep in found.sweeps:
        arm = next((a for a in sweep.standings if a.startswith(SPECKV) and a != RESTATED), None)
        if arm is not None:
            text = _text(outcome, sweep, arm)
            lines.append(f"{sweep.draft}, {sweep.traffic}: {_speed(sweep, arm)}; {text}.")
    return lines


def _speed(sweep: Sweep, arm: str) -> str:
    standing = sweep.standings[arm]
    name = "SpecKV" if arm == SPECKV else arm
    parts = []
    if standing.vs_best_fixed is not None:
        parts.append(
            f"{standing.vs_best_fixed} of the best fixed depth you would have had to find "
            f"({standing.best_fixed})"
        )
    for rule, what in (("ema", "SGLang's rule"), (RESTATED, "SGLang's rule as restated here")):
        if rule in standing.over and not any("rule" in part for part in parts):
            parts.append(f"{standing.over[rule]} of {what}")
    nones = [(standing.over[n].value, n) for n in ("none", "none:overlap") if n in standing.over]
    if nones:
        _, best = min(nones)
        shown = "" if best == "none" else " (with the overlap scheduler)"
        parts.append(f"{standing.over[best]} of no draft{shown}")
    said = f"{name} was " + ", ".join(parts) if parts else f"{name} was not compared with anything"
    if standing.lower_bound is not None:
        said += (
            f"; at least {standing.lower_bound:.2f} of every fixed setting, and not below "
            f"{NOT_INFERIOR} of the best one in {sweep.not_inferior[arm]} of {sweep.loads} loads"
        )
    return said


def _text(outcome: Outcome, sweep: Sweep, arm: str) -> str:
    verdicts = [
        verdict
        for (ours, condition), verdict in outcome.verdicts.items()
        if (ours.draft, ours.name, condition.traffic) == (sweep.draft, arm, sweep.traffic)
    ]
    if verdicts:
        total = sum(verdict.answers for verdict in verdicts)
        said = f"text identical in {sum(v.identical for v in verdicts)} of {total} answers"
        for count, name in (
            (sum(v.ties for v in verdicts), "differing only at ties of the target"),
            (sum(v.lost for v in verdicts), "NOT the target's"),
            (sum(v.unchecked for v in verdicts), "unchecked"),
        ):
            said += f", {count} {name}" if count else ""
        return said
    values = [p for a, p in outcome.p_values.items() if (a.draft, a.name) == (sweep.draft, arm)]
    if values:
        return f"sampled answers agree with the target's distribution at p = {values[0]:.2g}"
    return "text NOT CHECKED"


def not_checked(outcome: Outcome) -> bool:
    """Whether no answer of any arm could be compared with the target's."""
    return not outcome.p_values and all(
        verdict.lossless is None for verdict in outcome.verdicts.values()
    )


def lossy(outcome: Outcome) -> list[str]:
    """What fails a run: greedy answers with tokens that the target would not choose, and sampled
    ones of another distribution."""
    found = [
        f"{arm.draft} {arm.name} ({condition}): {verdict.lost} of {verdict.answers} answers hold a "
        f"token that the target would not choose (gap {verdict.largest_gap:.2g}, a tie has up to "
        f"{verdict.allowed:g})"
        for (arm, condition), verdict in outcome.verdicts.items()
        if verdict.lost
    ]
    for arm, p in outcome.p_values.items():
        if p < LEAST_P:
            found.append(
                f"{arm.draft} {arm.name}: sampled answers are not the target's distribution "
                f"(p = {p:.1e})"
            )
    return found
