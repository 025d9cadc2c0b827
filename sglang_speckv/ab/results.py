"""``results.json``: all of a run, with what it was computed from and where it came from. Tables,
page and chart are drawn from it alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from sglang_speckv.ab.answer import Record, answers
from sglang_speckv.ab.comparison import Comparison
from sglang_speckv.ab.outcome import Outcome
from sglang_speckv.ab.sampled import detectable
from sglang_speckv.ab.servers import unequal
from sglang_speckv.ab.verdict import judge
from sglang_speckv.demo.target import DEMO_TARGET
from sglang_speckv.files import write_json
from sglang_speckv.provenance import MEASURED_ROOMS, code_digest, shown_path

RESULTS = "results.json"
SCHEMA_VERSION = 3
_LAST_LINE = ("answers", "none_scheduling", "sweep", "checks", "seconds")
_DETAIL = ("ttft_s", "tpot_s", "e2e_s", "goodput_per_s", "block_results", "over", "text", "load")
"""Of a cell, what the last line on stdout leaves out."""


def describe(wanted: Comparison, outcome: Outcome, seconds: float) -> Record:
    """JSON builtins."""
    settings = {name: facts.settings for name, facts in outcome.facts.items() if facts.settings}
    judged = judge(wanted.arms, wanted.traffic, outcome, wanted.options.goodput)
    sampled = _sampled(outcome)
    return {
        "schema": SCHEMA_VERSION,
        "answers": answers(judged, sampled),
        "lossy": outcome.lossy,
        "provenance": outcome.provenance,
        "code_changed": _code() != outcome.provenance.get("code"),
        "options": msgspec.to_builtins(wanted.options),
        "target": shown_path(wanted.target),
        "target_note": "4-bit weights (Q4_1) expanded" if DEMO_TARGET in wanted.target else None,
        "drafts": {d.name: [d.algorithm, shown_path(d.path)] for d in wanted.drafts},
        "dtype": wanted.dtype,
        "server_flags": list(wanted.server_flags),
        "servers_together": wanted.together,
        "seconds": round(seconds, 1),
        "interrupted": outcome.interrupted,
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
        "sampled": sampled,
        **judged,
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


def last_line(results: Record, files: dict[str, Path]) -> str:
    """One compact JSON object, the last line on stdout."""
    summary = {
        **{key: results[key] for key in _LAST_LINE},
        "cells": [
            {key: value for key, value in cell.items() if key not in _DETAIL}
            for cell in results["cells"]
        ],
        "failures": sorted(results["failures"]),
        **{name: str(path) for name, path in files.items()},
    }
    return msgspec.json.encode(summary).decode()


def write_results(path: Path, results: Record) -> None:
    write_json(path, results)


def _code() -> dict[str, str]:
    return {room: code_digest(room) for room in MEASURED_ROOMS}


def _sampled(outcome: Outcome) -> dict[str, dict[str, float]]:
    """By draft and arm: the p-value, and which shift of probability would have been found."""
    found = {}
    for arm, p in outcome.p_values.items():
        reference = outcome.reference_of(arm)
        assert reference is not None, "without one there is no p-value"
        shift = detectable(outcome.samples[reference])
        found[f"{arm.draft} {arm.name}"] = {"p_value": p, "detectable_shift": round(shift, 3)}
    return found
