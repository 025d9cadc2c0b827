"""``report.html``: one file that needs no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import msgspec

from sglang_speckv.bench import plot
from sglang_speckv.bench.cells import Cell
from sglang_speckv.bench.execute import Execution
from sglang_speckv.bench.report import (
    FOOTNOTE,
    OPEN_LOOP,
    check_line,
    headroom_line,
    lossless_text,
)
from sglang_speckv.bench.sweep import Sweep
from sglang_speckv.files import write_atomically

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2937; max-width: 1400px; margin: 2em auto;
       padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin-top: 2em; border-top: 1px solid #e5e7eb;
     padding-top: 1em; } h3 { font-size: 1em; margin-bottom: .3em; }
table { border-collapse: collapse; font-size: 13px; margin: .5em 0 1em; }
th, td { padding: .2em .7em; text-align: right; border-bottom: 1px solid #e5e7eb;
         white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tr.speckv td { background: #ecfdf5; font-weight: 600; }
.bad { color: #b91c1c; } .note { color: #6b7280; font-size: 13px; } pre { font-size: 12px;
overflow-x: auto; background: #f9fafb; padding: .7em; } svg { max-width: 100%; height: auto; }
.scroll { overflow-x: auto; }
"""


def write_report(done: Execution, path: Path) -> Path:
    """The report of a finished or interrupted run."""
    page = _page(done)
    write_atomically(path, lambda scratch: scratch.write_text(page, encoding="utf-8"))
    return path


def _page(done: Execution) -> str:
    results = done.results
    title = f"speckv ab: {escape(Path(str(results['target'])).name)}"
    body = [
        f"<h1>{title}</h1>",
        _summary(done),
        *(_sweep_section(sweep, done.found.cells) for sweep in done.found.sweeps),
        _steps_section(done.found.cells),
        _classes_section(done.found.cells),
        _calibration_section(results),
        _checks_section(done),
        _servers_section(results),
        "<h2>Where this comes from</h2>",
        f"<pre>{escape(_json(results['provenance']))}\n{escape(_json(results['options']))}</pre>",
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _summary(done: Execution) -> str:
    results = done.results
    lines = [escape(headroom_line(sweep)) for sweep in done.found.sweeps]
    lines.append(
        f"{results['max_new_tokens']} output tokens per request, {escape(results['dtype'])}, "
        f"{results['seconds'] / 60:.0f} minutes"
    )
    bad = [
        f'<li class="bad">out of the comparison, {escape(name)}:<pre>{escape(reason)}</pre></li>'
        for name, reason in results["failures"].items()
    ]
    if results["interrupted"]:
        bad.append('<li class="bad">interrupted: fewer blocks than planned, answers unchecked</li>')
    return f"<ul>{''.join(f'<li>{line}</li>' for line in lines)}{''.join(bad)}</ul>"


def _sweep_section(sweep: Sweep, cells: Sequence[Cell]) -> str:
    ours = [c for c in cells if (c.draft, c.condition.traffic) == (sweep.draft, sweep.traffic)]
    name = escape(f"{sweep.draft}, {sweep.traffic}")
    parts = [f"<h2>{name}</h2><p>{escape(headroom_line(sweep))}</p>"]
    if any(cell.ratio for cell in ours):
        parts.append(
            plot.svg(
                plot.rates_figure,
                ours,
                "tok/s over the best static arm, by load and arm, 95 % intervals",
            )
        )
    if sweep.standings:
        parts.append(_sweep_table(sweep))
    for condition in dict.fromkeys(cell.condition for cell in ours):
        parts.append(f"<h3>{escape(str(condition))}</h3>")
        parts.append(_cell_table([cell for cell in ours if cell.condition == condition]))
    note = FOOTNOTE + (" " + OPEN_LOOP if any(cell.condition.rate for cell in ours) else "")
    return "".join(parts) + f'<p class="note">{escape(note)}</p>'


def _sweep_table(sweep: Sweep) -> str:
    head = (
        *("arm", "tok/s (geo. mean)", "vs best single static", "vs baseline", "vs ema"),
        *("of the headroom", "worst cell vs best static"),
    )
    rows = []
    for standing in sweep.standings:
        captured = sweep.captured(standing) if standing.arm.startswith("speckv") else None
        rows.append(
            [
                standing.arm,
                f"{standing.tok_per_s:.1f}",
                *(str(r or "-") for r in (standing.vs_best_single, standing.vs_baseline)),
                str(standing.vs_ema or "-"),
                "-" if captured is None else f"{captured:.0%}",
                str(standing.worst.ratio) if standing.worst else "-",
            ]
        )
    return _table(head, rows)


def _cell_table(cells: Sequence[Cell]) -> str:
    head = (
        *("arm", "tok/s", "vs best static", "vs baseline", "blocks", "accept length"),
        *("accept rate", "latency p50 / p99 s", "first token p50 / p99 s"),
        *("per token p50 / p99 ms", "rounds per step count", "time per step count", "lossless"),
    )
    return _table(head, [_cell_row(cell) for cell in cells])


def _cell_row(cell: Cell) -> list[str]:
    times = cell.latencies()
    return [
        cell.arm,
        f"{cell.tok_per_s:.1f}",
        str(cell.ratio or "-"),
        str(cell.to_baseline or "-"),
        str(len(cell.blocks)),
        "-" if cell.accept_length is None else f"{cell.accept_length:.2f}",
        "-" if cell.accept_rate is None else f"{cell.accept_rate:.0%}",
        _two(times["latency_s"]),
        _two(times["first_token_s"]),
        _two(times["per_token_s"], 1e3, ".0f"),
        _shares(cell.steps),
        _shares(cell.step_time),
        lossless_text(cell.verdict),
    ]


def _steps_section(cells: Sequence[Cell]) -> str:
    chosen = [cell for cell in cells if cell.arm == "speckv" and cell.steps]
    chosen = chosen or [cell for cell in cells if cell.arm.startswith("speckv") and cell.steps]
    if not chosen:
        return ""
    return f"<h2>Steps over time</h2>{plot.svg(plot.steps_figure, chosen)}"


def _classes_section(cells: Sequence[Cell]) -> str:
    parts = []
    for draft in dict.fromkeys(cell.draft for cell in cells):
        ours = [cell for cell in cells if cell.draft == draft and "#" not in cell.arm]
        found = accept_by_class(ours)
        if found:
            parts.append(f"<h3>{escape(draft)}</h3>{plot.svg(plot.accept_figure, found)}")
    return f"<h2>Accept length by class</h2>{''.join(parts)}" if parts else ""


def accept_by_class(cells: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """arm -> class -> accept length over all loads, from SGLang's counts per request."""
    totals: dict[str, dict[str, list[int]]] = {}
    for cell in cells:
        for result in cell.blocks:
            for prompt, done in zip(result.block.prompts, result.completions, strict=True):
                if done.verify_ct:
                    count = totals.setdefault(cell.arm, {}).setdefault(prompt.kind, [0, 0])
                    count[0] += done.num_correct_drafts
                    count[1] += done.verify_ct
    return {
        arm: {kind: 1 + correct / rounds for kind, (correct, rounds) in found.items()}
        for arm, found in totals.items()
    }


def _calibration_section(results: dict[str, Any]) -> str:
    bins = results["calibration"]
    return f"<h2>Calibration</h2>{plot.svg(plot.calibration_figure, bins)}" if bins else ""


def _checks_section(done: Execution) -> str:
    lines = [check_line(check) for check in done.found.checks]
    lines += [
        f"sampled answers, {arm}: p = {p:.3g} of the target's distribution"
        for arm, p in done.results["sampling_p_values"].items()
    ]
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<h2>Noise and checks</h2><ul>{items}</ul>"


def _servers_section(results: dict[str, Any]) -> str:
    keys = ("ready_s", "memory_gb", "effective_max_running_requests_per_dp", "max_total_tokens")
    steps = ("speculative_num_steps", "speculative_eagle_topk", "speculative_num_draft_tokens")
    heads = ("server", "start-up s", "memory GB", "max running", "KV tokens", "steps", "topk")
    rows = [
        [name, *(str(server.get(key, "-")) for key in (*keys, *steps))]
        for name, server in results["servers"].items()
    ]
    differ = "".join(
        f"<li>{escape(key)}: {escape(_json(values))}</li>"
        for key, values in results["settings_that_differ"].items()
    )
    note = f"<p>Settings that differ between servers:</p><ul>{differ}</ul>" if differ else ""
    return f"<h2>Servers</h2>{_table((*heads, 'draft tokens'), rows)}{note}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        kind = ' class="speckv"' if tag == "td" and cells[0].startswith("speckv") else ""
        return f"<tr{kind}>{''.join(f'<{tag}>{escape(text)}</{tag}>' for text in cells)}</tr>"

    lines = row(head, "th") + "".join(row(cells, "td") for cells in rows)
    return f'<div class="scroll"><table>{lines}</table></div>'


def _shares(shares: Any) -> str:
    return "  ".join(f"{tier}: {share:.0%}" for tier, share in (shares or {}).items()) or "-"


def _two(found: dict[str, float] | None, scale: float = 1.0, form: str = ".2f") -> str:
    return (
        "-" if found is None else f"{scale * found['p50']:{form}} / {scale * found['p99']:{form}}"
    )


def _json(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=1).decode()
