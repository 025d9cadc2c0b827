"""The answer in a sentence: what SpecKV brought, and whether the text stayed the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sglang_speckv.ab.arms import RESTATED
from sglang_speckv.ab.intervals import NOT_INFERIOR
from sglang_speckv.ab.traffic import MOVING

SPECKV = "speckv"

Record = dict[str, Any]


def answers(judged: Record, sampled: Mapping[str, Record]) -> list[str]:
    """One for each draft and kind of traffic that ``speckv`` served."""
    lines = []
    for draft, by_traffic in judged["sweep"].items():
        for traffic, sweep in by_traffic.items():
            arm = next((a for a in sweep["arms"] if a.startswith(SPECKV) and a != RESTATED), None)
            if arm is not None:
                ours = [
                    cell
                    for cell in judged["cells"]
                    if (cell["draft"], cell["arm"], cell["traffic"]) == (draft, arm, traffic)
                ]
                text = _text(ours, sampled.get(f"{draft} {arm}"))
                lines.append(f"{draft}, {traffic}: {_speed(sweep, arm)}; {text}.")
    return lines


def shown(ratio: float | None, interval: Sequence[float] | None = None) -> str:
    """``1.02 [0.98, 1.06]``."""
    if ratio is None:
        return "-"
    return f"{ratio:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def _speed(sweep: Record, arm: str) -> str:
    standing = sweep["arms"][arm]
    over = standing["over"]
    parts = []
    if standing["vs_best_fixed"] is not None:
        parts.append(
            f"{shown(standing['vs_best_fixed'], standing['interval'])} of the best fixed depth "
            f"you would have had to find ({standing['best_fixed']})"
        )
    for rule, what in (("ema", "SGLang's rule"), (RESTATED, "SGLang's rule as restated here")):
        if rule in over and not any("rule" in part for part in parts):
            parts.append(f"{shown(**over[rule])} of {what}")
    nones = [(over[name]["ratio"], name) for name in ("none", "none:overlap") if name in over]
    if nones:
        _, best = min(nones)
        how = "" if best == "none" else " (with the overlap scheduler)"
        parts.append(f"{shown(**over[best])} of no draft{how}")
    name = "SpecKV" if arm == SPECKV else arm
    said = f"{name} was " + ", ".join(parts) if parts else f"{name} was not compared with anything"
    if standing["lower_bound"] is not None:
        said += (
            f"; at least {standing['lower_bound']:.2f} of every fixed setting, and as good as the "
            f"best one (lower bound at least {NOT_INFERIOR}) at {standing['not_inferior']} of "
            f"{sweep['loads']} loads"
        )
    return said


def _text(cells: Sequence[Record], sampled: Record | None) -> str:
    judged = cells[:1] if cells[0]["traffic"] in MOVING else cells  # its loads are judged as one
    checked = [cell for cell in judged if cell["answers"]]
    if checked:
        total = {
            key: sum(cell[key] for cell in checked)
            for key in ("answers", "identical", "ties", "lost", "unchecked")
        }
        said = f"text identical in {total['identical']} of {total['answers']} answers"
        for key, name in (
            ("ties", "differing only at ties of the target"),
            ("lost", "NOT the target's"),
            ("unchecked", "unchecked"),
        ):
            said += f", {total[key]} {name}" if total[key] else ""
        return said
    if sampled is not None:
        return (
            f"sampled answers agree with the target's distribution at p = {sampled['p_value']:.2g}"
        )
    return "text NOT CHECKED"
