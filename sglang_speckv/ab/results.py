"""``results.json``: all of a run, with what it was computed from and where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sglang_speckv.ab.answer import answers
from sglang_speckv.ab.comparison import Comparison
from sglang_speckv.ab.intervals import Ratio
from sglang_speckv.ab.runner import Outcome
from sglang_speckv.ab.sampled import detectable
from sglang_speckv.ab.servers import unequal
from sglang_speckv.ab.tables import markdown_tables
from sglang_speckv.ab.verdict import Cell, Check, Judgement, Standing, Sweep
from sglang_speckv.demo.target import DEMO_TARGET
from sglang_speckv.files import write_atomically
from sglang_speckv.provenance import provenance, shown_path

RESULTS = "results.json"
SCHEMA_VERSION = 2


def describe(
    wanted: Comparison, outcome: Outcome, found: Judgement, seconds: float
) -> dict[str, Any]:
    """JSON builtins."""
    settings = {name: facts.settings for name, facts in outcome.facts.items() if facts.settings}
    return {
        "schema": SCHEMA_VERSION,
        "answers": answers(outcome, found),
        "provenance": provenance(),
        "options": msgspec.to_builtins(wanted.options),
        "target": shown_path(wanted.target),
        "target_note": "4-bit weights (Q4_1) expanded" if DEMO_TARGET in wanted.target else None,
        "drafts": {d.name: [d.algorithm, shown_path(d.path)] for d in wanted.drafts},
        "dtype": wanted.dtype,
        "server_flags": list(wanted.server_flags),
        "seconds": round(seconds, 1),
        "interrupted": outcome.interrupted,
        "servers_ready_s": round(outcome.ready_s, 1),
        "servers": {
            name: {
                "ready_s": facts.ready_s and round(facts.ready_s, 1),
                "memory_gb": facts.peak_memory and round(facts.peak_memory / 1e9, 2),
                **facts.settings,
            }
            for name, facts in outcome.facts.items()
        },
        "none_scheduling": none_scheduling(settings),
        "settings_that_differ": unequal(settings),
        "failures": {name: shown_path(text) for name, text in outcome.failures.items()},
        "noise_block_seconds_of_none": _noise(outcome),
        "sampled": _sampled(outcome),
        "calibration": {f"{a.draft} {a.name}": r for a, r in outcome.reliability.items() if r},
        "sweep": sweeps_json(found),
        "checks": [check_json(check) for check in found.checks],
        "tables": markdown_tables(found),
        "cells": [cell_json(cell) | _detail(cell) for cell in found.cells],
    }


def none_scheduling(settings: dict[str, dict[str, Any]]) -> str | None:
    """How the servers of ``none`` and of ``none:overlap`` schedule."""
    names = {True: "without overlap", False: "with overlap", None: "unknown"}
    found = {
        name: names[of.get("disable_overlap_schedule")]
        for name, of in settings.items()
        if name.endswith(("none", "none-overlap"))
    }
    return "; ".join(f"{name}: {how}" for name, how in found.items()) or None


def sweeps_json(found: Judgement) -> dict[str, dict[str, Any]]:
    """draft -> traffic -> the best fixed setting and all arms."""
    shown: dict[str, dict[str, Any]] = {}
    for sweep in found.sweeps:
        shown.setdefault(sweep.draft, {})[sweep.traffic] = _sweep_json(sweep)
    return shown


def cell_json(cell: Cell) -> dict[str, Any]:
    """What the last line on stdout has of a cell."""
    return {
        "draft": cell.draft,
        "arm": cell.arm,
        "traffic": cell.condition.traffic,
        "concurrency": cell.condition.concurrency,
        "rate": cell.condition.rate,
        "blocks": len(cell.blocks),
        "tok_per_s": round(cell.tok_per_s, 2),
        **_standing_json(cell.standing),
        "accept_length": _rounded(cell.accept_length),
        "accept_rate": _rounded(cell.accept_rate),
        "active": True if cell.counters else None,
        "lossless": cell.verdict.lossless if cell.verdict else None,
        "steps": _shares(cell.steps),
    }


def check_json(check: Check) -> dict[str, Any]:
    return {
        "kind": check.kind,
        "draft": check.draft,
        "arm": check.arm,
        "against": check.against,
        "traffic": check.condition.traffic,
        "concurrency": check.condition.concurrency,
        "rate": check.condition.rate,
        **_ratio_json(check.ratio),
        "within_noise": check.within_noise,
    }


def last_line(results: dict[str, Any], files: dict[str, Path]) -> str:
    """One compact JSON object, the last line on stdout."""
    kept = cell_keys(results)
    summary = {
        **{key: results[key] for key in ("answers", "none_scheduling")},
        "cells": [{key: cell[key] for key in kept} for cell in results["cells"]],
        **{key: results[key] for key in ("sweep", "checks")},
        "failures": sorted(results["failures"]),
        **{name: str(path) for name, path in files.items()},
        "seconds": results["seconds"],
    }
    return msgspec.json.encode(summary).decode()


def cell_keys(results: dict[str, Any]) -> list[str]:
    """Those of :func:`cell_json`: what comes before the details of the first cell."""
    keys = list(results["cells"][0]) if results["cells"] else []
    return keys[: keys.index("ttft_s")] if keys else []


def write_results(path: Path, results: dict[str, Any]) -> None:
    content = msgspec.json.format(msgspec.json.encode(results), indent=1)
    write_atomically(path, lambda scratch: scratch.write_bytes(content))


def _detail(cell: Cell) -> dict[str, Any]:
    verdict = cell.verdict
    return {
        "ttft_s": cell.ttft_s,
        "tpot_s": cell.tpot_s,
        "e2e_s": cell.e2e_s,
        "goodput_per_s": _rounded(cell.goodput),
        "step_time": _shares(cell.step_time),
        "answers": verdict and verdict.answers,
        "identical": verdict and verdict.identical,
        "ties": verdict and verdict.ties,
        "lost": verdict and verdict.lost,
        "unchecked": verdict and verdict.unchecked,
        "largest_gap": verdict and verdict.largest_gap,
        "block_results": [
            {
                "index": result.block.index,
                "place": result.place,
                "prompts": [prompt.id for prompt in result.block.prompts],
                "tokens": round(sum(float(part.tokens.sum()) for part in parts), 1),
                "seconds": round(sum(part.seconds for part in parts), 4),
                "has_window": all(part.whole for part in parts),
                "rounds": result.counters and result.counters.rounds,
            }
            for result, parts in zip(cell.blocks, cell.parts, strict=True)
        ],
    }


def _sweep_json(sweep: Sweep) -> dict[str, Any]:
    return {
        "best_fixed": sweep.best_fixed,
        "loads": sweep.loads,
        "arms": {
            arm: {
                "tok_per_s": round(sweep.tok_per_s[arm], 2),
                **_standing_json(standing),
                "over": {name: _ratio_json(found) for name, found in standing.over.items()},
                "vs_own_best_fixed": _ratio_json(sweep.own_best.get(arm)),
                "not_inferior": sweep.not_inferior[arm],
            }
            for arm, standing in sweep.standings.items()
        },
    }


def _standing_json(standing: Standing) -> dict[str, Any]:
    ratio = standing.vs_best_fixed
    return {
        "best_fixed": standing.best_fixed,
        "vs_best_fixed": ratio and round(ratio.value, 4),
        "interval": ratio and ratio.interval,
        "lower_bound": _rounded(standing.lower_bound),
    }


def _ratio_json(ratio: Ratio | None) -> dict[str, Any]:
    return {"ratio": ratio and round(ratio.value, 4), "interval": ratio and ratio.interval}


def _sampled(outcome: Outcome) -> dict[str, Any]:
    """Of each arm: the p-value, and what shift of probability would have been found."""
    found = {}
    for arm, p in outcome.p_values.items():
        none = outcome.reference_of(arm)
        shift = detectable(outcome.samples[none]) if none else 1.0
        found[f"{arm.draft} {arm.name}"] = {"p_value": p, "detectable_shift": round(shift, 3)}
    return found


def _noise(outcome: Outcome) -> dict[str, float | None]:
    """Standard deviation over mean of the seconds that ``none`` took for a block."""
    found = {}
    for (arm, condition), blocks in outcome.results.blocks.items():
        if arm.name == "none":
            seconds = [result.seconds for result in blocks]
            enough = len(seconds) > 1
            found[str(condition)] = (
                round(float(np.std(seconds, ddof=1) / np.mean(seconds)), 4) if enough else None
            )
    return found


def _shares(found: Any) -> dict[str, float] | None:
    return {tier: round(share, 4) for tier, share in found.items()} if found else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
