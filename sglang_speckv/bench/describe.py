"""``results.json``: all of a run, with what it was computed from and where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from sglang_speckv.bench import stats
from sglang_speckv.bench.cells import Cell
from sglang_speckv.bench.compare import Comparison, Outcome
from sglang_speckv.bench.judgement import Judgement
from sglang_speckv.bench.proof import unequal
from sglang_speckv.bench.provenance import provenance, shown_path
from sglang_speckv.demo.target import DEMO_TARGET

SCHEMA_VERSION = 1


def describe(
    wanted: Comparison, outcome: Outcome, found: Judgement, seconds: float
) -> dict[str, Any]:
    """JSON builtins."""
    settings = {name: facts.settings for name, facts in outcome.facts.items() if facts.settings}
    return {
        "schema": SCHEMA_VERSION,
        "provenance": provenance(),
        "options": msgspec.to_builtins(wanted.options),
        "target": shown_path(wanted.target),
        "target_note": "4-bit weights (Q4_1) expanded" if DEMO_TARGET in wanted.target else None,
        "drafts": {d.name: [d.algorithm, shown_path(d.path)] for d in wanted.drafts},
        "dtype": wanted.dtype,
        "server_flags": list(wanted.server_flags),
        "max_new_tokens": outcome.max_new_tokens,
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
        "settings_that_differ": unequal(settings),
        "failures": {name: shown_path(text) for name, text in outcome.failures.items()},
        "noise_block_seconds_of_none": _noise(wanted, outcome),
        "sampling_p_values": {f"{a.draft} {a.name}": p for a, p in outcome.p_values.items()},
        "calibration": {f"{a.draft} {a.name}": r for a, r in outcome.reliability.items() if r},
        "sweep": sweep_json(found),
        "checks": [check.to_json() for check in found.checks],
        "cells": [cell_detail(cell) for cell in found.cells],
    }


def sweep_json(found: Judgement) -> dict[str, dict[str, Any]]:
    """draft -> workload -> headroom and arms."""
    shown: dict[str, dict[str, Any]] = {}
    for sweep in found.sweeps:
        shown.setdefault(sweep.draft, {})[sweep.traffic] = sweep.to_json()
    return shown


def cell_detail(cell: Cell) -> dict[str, Any]:
    """A cell with its blocks."""
    ratio, verdict = cell.ratio, cell.verdict
    return {
        **cell.to_ab_json(),
        "ratio_to_best_static": ratio and round(ratio.value, 4),
        "ratio_interval": (ratio and ratio.interval) or [None, None],
        "vs_baseline": cell.to_baseline and round(cell.to_baseline.value, 4),
        "vs_baseline_interval": cell.to_baseline and cell.to_baseline.interval,
        **cell.latencies(),
        "step_time": cell.step_time,
        "answers": verdict and verdict.answers,
        "divergences": verdict and len(verdict.gaps),
        "ties": verdict and verdict.ties,
        "largest_gap": max(verdict.gaps, default=None) if verdict else None,
        "blocks": [
            {
                "index": result.block.index,
                "prompts": [prompt.id for prompt in result.block.prompts],
                "tokens": round(result.tokens, 1),
                "seconds": round(result.cost_s, 4),
                "rounds": result.counters and result.counters.rounds,
            }
            for result in cell.blocks
        ],
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Infinities (a gap that was not asked) become null, as JSON has none."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=1))


def _noise(wanted: Comparison, outcome: Outcome) -> dict[str, float | None]:
    none = next((arm for arm in wanted.arms if arm.name == "none"), None)
    return {
        str(condition): stats.spread([result.seconds for result in blocks])
        for (arm, condition), blocks in outcome.results.blocks.items()
        if arm == none
    }
