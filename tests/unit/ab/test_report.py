"""What a person sees: the page, the chart's file and the terminal, from the same columns."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sglang_speckv.ab.lossless import Verdict
from sglang_speckv.ab.report import print_report, write_report
from sglang_speckv.ab.results import describe
from sglang_speckv.ab.runner import Outcome
from sglang_speckv.ab.servers import ServerFacts
from sglang_speckv.ab.tables import CELL, NOTES, SWEEP, Row, markdown
from sglang_speckv.ab.verdict import Judgement, judge
from tests.unit.ab.test_verdict import FOUR, ONE, SPECKV, comparison, outcome


@pytest.fixture
def run() -> tuple[dict[str, Any], Judgement, Outcome]:
    found = outcome(ONE, FOUR)
    found.verdicts[SPECKV, FOUR] = Verdict(4, 2, (1e-4, 0.3), 1e-3)
    settings = {"disable_overlap_schedule": True, "attention_backend": "<torch>"}
    found.facts = {
        "none": ServerFacts(20.0, 10**9, settings),
        "eagle3-speckv": ServerFacts(25.0, 10**9, settings | {"disable_overlap_schedule": False}),
    }
    found.reliability[SPECKV] = ((0.25, 0.3, 80.0), (0.9, 0.8, 20.0))
    found.failures["eagle3-ema"] = "no such <device>"
    wanted = comparison(found)
    judged = judge(wanted, found)
    return describe(wanted, found, judged, 61.0), judged, found


def test_the_page_opens_with_the_answer_and_then_the_chart(run: Any, tmp_path: Path):
    files = write_report(*run, tmp_path)
    page = files["report"].read_text()
    text = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    order = [
        text.index(mark)
        for mark in ("SpecKV was 1.", "NOT the target", "<svg", "All loads", "Depths over time")
    ]
    assert order == sorted(order)
    assert "http" not in page.replace("http://www.w3.org", ""), "it needs no network"


def test_what_is_odd_is_on_top_and_escaped(run: Any, tmp_path: Path):
    page = write_report(*run, tmp_path)["report"].read_text()
    top = page[: page.index("<h2>")]
    assert "Servers differ in disable_overlap_schedule: none True, eagle3-speckv False." in top
    assert "1 of 4 answers hold a token that the target would not choose" in top
    assert "no such &lt;device&gt;" in top and "<device>" not in page
    assert "none: without overlap" in top


def test_every_arm_is_in_every_table_of_its_loads(run: Any, tmp_path: Path):
    page = write_report(*run, tmp_path)["report"].read_text()
    tables = re.findall(r"<table>.*?</table>", page, flags=re.DOTALL)
    heads = [re.findall(r"<th[^>]*>([^<]*)</th>", table) for table in tables]
    assert [head[1] for head in heads].count("tok/s") == 2
    assert max(map(len, heads)) <= 9, "a wider one does not fit the page"
    for table in tables[:3]:
        for arm in ("none", "static:1", "static:3", "speckv"):
            assert f">{arm}<" in table


def test_the_chart_is_a_file_of_its_own(run: Any, tmp_path: Path):
    files = write_report(*run, tmp_path)
    chart = files["chart"].read_text()
    assert chart.startswith("<svg") and ">speckv<" in chart and ">4 requests" in chart


def test_without_ratios_there_is_a_page_and_no_chart(tmp_path: Path):
    found = outcome(seconds={SPECKV: 1.4})
    wanted = comparison(found)
    judged = judge(wanted, found)
    files = write_report(describe(wanted, found, judged, 1.0), judged, found, tmp_path)
    assert list(files) == ["report"] and files["report"].is_file()


def test_the_terminal_ends_with_the_answer(run: Any):
    out = io.StringIO()
    print_report(*run, Console(file=out, width=220))
    text = out.getvalue()
    assert "eagle3, mixed: 1 request" in text and "eagle3, mixed: all loads" in text
    assert "2 of 4 identical, 1 ties, 1 LOST" in text
    assert "servers differ in disable_overlap_schedule" in text
    assert text.rstrip().splitlines()[-1].startswith("eagle3, mixed: SpecKV was 1.")
    for note in NOTES:
        assert note[:40] in text


def test_the_readmes_tables_have_the_same_columns(run: Any):
    _, judged, _ = run
    cells = [cell for cell in judged.cells if cell.condition == ONE]
    lines = markdown(CELL, cells).splitlines()
    assert lines[0] == f"| {' | '.join(column.heading for column in CELL)} |"
    assert len(lines) == 2 + len(cells) and len({line.count("|") for line in lines}) == 1
    (sweep,) = judged.sweeps
    shown = markdown(SWEEP, [Row(sweep, "speckv"), Row(sweep, "static:3")])
    assert "| is it |" in shown and "| 2 of 2 |" in shown
