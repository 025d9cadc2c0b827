"""What a run leaves to be looked at: ``report.html``, one file that needs no network, the chart of
ratios as ``ratios.svg``, and the terminal's tables. All of it is drawn from the results."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jinja2
import msgspec
from markupsafe import Markup
from rich.console import Console

from sglang_speckv.ab import chart, tables
from sglang_speckv.ab.answer import Record
from sglang_speckv.files import write_atomically


def write_report(results: Record, out: Path) -> dict[str, Path]:
    """``report.html`` and ``ratios.svg`` of a finished or interrupted run, by name."""
    charts = {
        (draft, traffic): found
        for draft, by_traffic in results["sweep"].items()
        for traffic in by_traffic
        if (found := _chart(results, draft, traffic))
    }
    files = {"report": out / "report.html"}
    page = _page(results, charts)
    write_atomically(files["report"], lambda scratch: scratch.write_text(page, encoding="utf-8"))
    # one chart by draft and traffic; the first is the file that a README shows
    for i, drawn in enumerate(charts.values(), 1):
        path = out / ("ratios.svg" if i == 1 else f"ratios-{i}.svg")
        files.setdefault("chart", path)
        write_atomically(path, partial(Path.write_text, data=drawn))
    return files


def print_report(results: Record, console: Console) -> None:
    """Tables for each load, then what is odd, then the answer."""
    for title, columns, records in tables.tables(results):
        console.print(tables.rich_table(title, columns, records))
    for note in tables.notes(results):
        console.print(note, style="dim", highlight=False, markup=False)
    for line in tables.checks(results):
        console.print(line, highlight=False, markup=False)
    for line in tables.odd(results):
        console.print(line, style="red", markup=False)
    for line in results["answers"]:
        console.print(line, style="bold", highlight=False, markup=False, soft_wrap=True)


def _page(results: Record, charts: dict[tuple[str, str], str]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sglang_speckv.ab", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    sweeps = [
        {
            "name": f"{draft}, {traffic}",
            "chart": Markup(charts.get((draft, traffic), "")),
            "rows": tables.rows(sweep),
            "loads": tables.by_load(results["cells"], draft, traffic),
        }
        for draft, by_traffic in results["sweep"].items()
        for traffic, sweep in by_traffic.items()
    ]
    sources = {key: results[key] for key in ("provenance", "options", "server_flags")}
    return environment.get_template("report.html.j2").render(
        title=f"speckv ab: {Path(results['target']).name}",
        results=results,
        sweeps=sweeps,
        tables=tables,
        servers=[{"arm": name, **facts} for name, facts in results["servers"].items()],
        sources=msgspec.json.format(msgspec.json.encode(sources), indent=1).decode(),
    )


def _chart(results: Record, draft: str, traffic: str) -> str:
    cells = [
        cell for _, found in tables.by_load(results["cells"], draft, traffic) for cell in found
    ]
    if not any(cell["vs_best_fixed"] for cell in cells):
        return ""
    return chart.svg(
        cells, f"{draft}, {traffic}: tok/s over the best fixed setting, 95 % intervals"
    )
