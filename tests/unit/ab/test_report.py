"""What a person sees: the page, the chart's file and the terminal, from the same columns."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from rich.console import Console

from sglang_speckv.ab import tables
from sglang_speckv.ab.arms import ServerFacts
from sglang_speckv.ab.lossless import Verdict
from sglang_speckv.ab.report import print_report, write_report
from sglang_speckv.ab.results import describe
from tests.unit.ab.test_verdict import FOUR, ONE, SPECKV, blocks, comparison, outcome


@pytest.fixture
def run() -> dict[str, Any]:
    found = outcome(ONE, FOUR)
    found.verdicts[SPECKV, FOUR] = Verdict(4, 2, (1e-4, 0.3), 1e-3)
    settings = {"disable_overlap_schedule": True, "attention_backend": "<torch>"}
    found.facts = {
        "none": ServerFacts(20.0, 10**9, settings),
        "eagle3-speckv": ServerFacts(25.0, 10**9, settings | {"disable_overlap_schedule": False}),
    }
    found.failures["eagle3-ema"] = "no such <device>"
    counters = blocks(SPECKV, 1.4)[0].counters
    failing = msgspec.structs.replace(counters, fallbacks=3)
    ran = found.blocks.ran[SPECKV, ONE]
    object.__setattr__(ran[0], "counters", failing)
    return describe(comparison(found), found, 61.0)


def test_the_page_opens_with_the_answer_and_then_the_chart(run: Any, tmp_path: Path):
    page = write_report(run, tmp_path)["report"].read_text()
    text = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    marks = ("SpecKV was 1.", "NOT the target", "<svg", "All loads", "More figures", "Servers</h2>")
    order = [text.index(mark) for mark in marks]
    assert order == sorted(order)
    assert "http" not in page.replace("http://www.w3.org", ""), "it needs no network"


def test_what_is_odd_is_on_top_and_escaped(run: Any, tmp_path: Path):
    page = write_report(run, tmp_path)["report"].read_text()
    top = page[: page.index("<h2>")]
    assert "servers differ in disable_overlap_schedule: none True, eagle3-speckv False" in top
    assert "1 of 4 answers hold a token that the target would not choose" in top
    assert "the policy failed in 3 rounds" in top
    assert "no such &lt;device&gt;" in top and "<device>" not in page
    assert "none: without overlap" in top


HOSTILE = "<script>alert(1)</script>'\"&<!--]]>"


def test_no_text_becomes_markup(run: Any, tmp_path: Path):
    """Names come from folders, flags, server answers and logs."""
    run["target"] = f"/models/{HOSTILE.replace('/', '')}"
    run["provenance"] = {**run["provenance"], "cpu": HOSTILE, "gpus": [HOSTILE]}
    run["answers"] = [HOSTILE]
    run["target_note"] = run["none_scheduling"] = HOSTILE
    run["server_flags"] = [HOSTILE]
    run["sweep"] = dict.fromkeys([HOSTILE], next(iter(run["sweep"].values())))
    for cell in run["cells"]:
        cell["draft"] = HOSTILE
    run["servers"] = dict.fromkeys([HOSTILE], next(iter(run["servers"].values())))
    run["failures"] = {HOSTILE: HOSTILE}
    files = write_report(run, tmp_path)
    page, drawn = files["report"].read_text(), files["chart"].read_text()
    assert page.count("&lt;script&gt;") > 6
    for text in (page, drawn):
        assert "<script" not in text and "alert(1)</" not in text and "<!--]]>" not in text
    ElementTree.fromstring(drawn)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("servers_together", False, "the servers ran one after another"),
        ("code_changed", True, "the code changed while it was measured"),
        ("interrupted", True, "interrupted: fewer blocks than planned"),
    ],
)
def test_what_weakens_a_run_is_told(run: Any, key: str, value: bool, said: str):
    assert not any(line.startswith(said) for line in tables.odd(run))
    assert any(line.startswith(said) for line in tables.odd(run | {key: value}))


def test_goodput_has_a_column_where_it_was_asked_for(run: Any, tmp_path: Path):
    assert "goodput" not in write_report(run, tmp_path)["report"].read_text().split("<pre>")[0]
    asked = run | {"options": run["options"] | {"goodput": {"ttft": 500}}}
    assert "goodput req/s" in write_report(asked, tmp_path)["report"].read_text()


def test_every_arm_is_in_every_table_of_its_loads(run: Any, tmp_path: Path):
    page = write_report(run, tmp_path)["report"].read_text()
    found = re.findall(r"<table>.*?</table>", page, flags=re.DOTALL)
    heads = [re.findall(r"<th[^>]*>([^<]*)</th>", table) for table in found]
    assert [head[1] for head in heads].count("tok/s") == 2
    assert max(map(len, heads)) <= 9, "a wider one does not fit the page"
    for table in found[:3]:
        for arm in ("none", "static:1", "static:3", "speckv"):
            assert f">{arm}<" in table


def test_the_chart_is_a_file_of_its_own(run: Any, tmp_path: Path):
    chart = write_report(run, tmp_path)["chart"].read_text()
    assert chart.startswith("<svg") and ">speckv<" in chart and ">4 requests" in chart


def test_without_ratios_there_is_a_page_and_no_chart(tmp_path: Path):
    found = outcome(seconds={SPECKV: 1.4})
    files = write_report(describe(comparison(found), found, 1.0), tmp_path)
    assert list(files) == ["report"] and files["report"].is_file()


def test_a_committed_result_can_be_drawn_again(run: Any, tmp_path: Path):
    again = json.loads(msgspec.json.encode(run))
    first = write_report(run, tmp_path / "a")["report"].read_text()
    assert write_report(again, tmp_path / "b")["report"].read_text() == first


def test_the_terminal_ends_with_the_answer(run: Any):
    out = io.StringIO()
    print_report(run, Console(file=out, width=220))
    text = out.getvalue()
    assert "eagle3, mixed: 1 request" in text and "eagle3, mixed: all loads" in text
    assert "2 of 4 identical, 1 ties, 1 LOST" in text
    assert "servers differ in disable_overlap_schedule" in text
    assert text.rstrip().splitlines()[-1].startswith("eagle3, mixed: SpecKV was 1.")
    for note in tables.NOTES:
        assert note[:40] in text


def test_markdown_has_the_same_columns(run: Any):
    for (_, columns, records), first in zip(
        tables.tables(run), (tables.CELL, tables.CELL, tables.SWEEP), strict=True
    ):
        assert columns == first
        lines = tables.markdown(columns, records).splitlines()
        assert lines[0] == f"| {' | '.join(column.heading for column in columns)} |"
        assert len(lines) == 2 + len(records) and len({line.count("|") for line in lines}) == 1
    assert "| best |" in lines[4] and lines[-1].endswith("| 2 of 2 |")
