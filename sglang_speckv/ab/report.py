"""What a run leaves to be looked at: ``report.html``, one file that needs no network, the chart of
ratios as ``ratios.svg``, and the terminal's tables."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import msgspec
from markupsafe import Markup
from rich.console import Console

from sglang_speckv.ab import plots
from sglang_speckv.ab.answer import lossy
from sglang_speckv.ab.runner import Outcome
from sglang_speckv.ab.tables import (
    CELL,
    DETAIL,
    NOTES,
    OPEN_LOOP,
    SWEEP,
    Column,
    Row,
    by_load,
    check_line,
    rich_table,
    shown,
)
from sglang_speckv.ab.verdict import Cell, Judgement, Sweep
from sglang_speckv.files import write_atomically


def _fact(heading: str, key: str) -> Column:
    return Column(heading, lambda server: shown(server.facts.get(key)))


_SERVER = (
    Column("server", lambda server: server.arm, left=True),
    _fact("start-up s", "ready_s"),
    _fact("memory GB", "memory_gb"),
    _fact("max running", "effective_max_running_requests_per_dp"),
    _fact("KV tokens", "max_total_tokens"),
    _fact("steps", "speculative_num_steps"),
    _fact("topk", "speculative_eagle_topk"),
    _fact("attention", "attention_backend"),
)


def write_report(
    results: dict[str, Any], found: Judgement, outcome: Outcome, out: Path
) -> dict[str, Path]:
    """``report.html`` and ``ratios.svg`` of a finished or interrupted run, by name."""
    files = {"report": out / "report.html", "chart": out / "ratios.svg"}
    page = _page(results, found, outcome)
    write_atomically(files["report"], lambda scratch: scratch.write_text(page, encoding="utf-8"))
    charts = [chart for sweep in found.sweeps if (chart := _chart(sweep, found.cells))]
    if not charts:
        return {"report": files["report"]}
    # one chart by draft and traffic; the first is the file that a README shows
    names = [files["chart"], *(out / f"ratios-{i}.svg" for i in range(2, 1 + len(charts)))]
    for path, chart in zip(names, charts, strict=False):
        write_atomically(path, partial(Path.write_text, data=chart))
    return files


def print_report(
    results: dict[str, Any], found: Judgement, outcome: Outcome, console: Console
) -> None:
    """Tables for each load, then what is odd, then the answer."""
    for sweep in found.sweeps:
        for load, cells in by_load(sweep, found.cells):
            console.print(rich_table(f"{sweep.draft}, {sweep.traffic}: {load}", CELL, cells))
        rows = [Row(sweep, arm) for arm in sweep.standings]
        console.print(rich_table(f"{sweep.draft}, {sweep.traffic}: all loads", SWEEP, rows))
    for note in _notes(found.cells):
        console.print(note, style="dim", highlight=False, markup=False)
    for line in _checks(results, found):
        console.print(line, highlight=False, markup=False)
    for key, values in results["settings_that_differ"].items():
        console.print(f"servers differ in {key}: {values}", style="red", markup=False)
    for name, reason in results["failures"].items():
        console.print(f"out of the comparison, {name}: {reason}", style="red", markup=False)
    for line in results["answers"]:
        console.print(line, style="bold", highlight=False, markup=False, soft_wrap=True)


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


def _page(results: dict[str, Any], found: Judgement, outcome: Outcome) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sglang_speckv.ab", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    sweeps = [
        {
            "name": f"{sweep.draft}, {sweep.traffic}",
            "chart": Markup(_chart(sweep, found.cells)),
            "rows": [Row(sweep, arm) for arm in sweep.standings],
            "loads": by_load(sweep, found.cells),
        }
        for sweep in found.sweeps
    ]
    own = [cell for cell in found.cells if cell.arm == "speckv" and cell.counters]
    bins = results["calibration"]
    return environment.get_template("report.html.j2").render(
        title=f"speckv ab: {Path(str(results['target'])).name}",
        results=results,
        losses=lossy(outcome),
        sweeps=sweeps,
        notes=_notes(found.cells),
        steps=_svg(plots.steps_figure, own) if own else "",
        classes=_classes(found.cells),
        calibration=_svg(plots.calibration_figure, bins) if bins else "",
        checks=_checks(results, found),
        servers=[SimpleNamespace(arm=n, facts=facts) for n, facts in results["servers"].items()],
        provenance=_json({key: results[key] for key in ("provenance", "options")}),
        **{"CELL": CELL, "DETAIL": DETAIL, "SWEEP": SWEEP, "SERVER": _SERVER},
    )


def _chart(sweep: Sweep, cells: Sequence[Cell]) -> str:
    ours = [cell for _, found in by_load(sweep, cells) for cell in found]
    if not any(cell.standing.vs_best_fixed for cell in ours):
        return ""
    title = f"{sweep.draft}, {sweep.traffic}: tok/s over the best fixed setting, 95 % intervals"
    return plots.svg(plots.ratios_figure, ours, title)


def _svg(make: Any, *args: Any) -> Markup:
    return Markup(plots.svg(make, *args))


def _classes(cells: Sequence[Cell]) -> list[tuple[str, Markup]]:
    pictures = []
    for draft in dict.fromkeys(cell.draft for cell in cells):
        ours = [cell for cell in cells if cell.draft == draft and "#" not in cell.arm]
        found = accept_by_class(ours)
        if found:
            pictures.append((draft, _svg(plots.accept_figure, found)))
    return pictures


def _notes(cells: Sequence[Cell]) -> list[str]:
    return [*NOTES, OPEN_LOOP] if any(cell.condition.rate for cell in cells) else list(NOTES)


def _checks(results: dict[str, Any], found: Judgement) -> list[str]:
    lines = [check_line(check) for check in found.checks]
    return lines + [
        f"sampled answers, {arm}: p = {told['p_value']:.3g} of the target's distribution; a shift "
        f"of {told['detectable_shift']:.0%} of the probability would have been found nine times "
        "out of ten"
        for arm, told in results["sampled"].items()
    ]


def _json(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=1).decode()
