"""What the pages for operators quote is what the code says and does."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sglang_speckv.ab.options import Options
from sglang_speckv.config import SpecKVConfig
from sglang_speckv.srt.controller import EnginePolicy
from sglang_speckv.srt.in_round import why_not

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def templates() -> Iterator[str]:
    """Every text of the package; what is put in while it runs is ``...``."""
    for path in (ROOT / "sglang_speckv").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (
                    part.value if isinstance(part, ast.Constant) else "..." for part in node.values
                )
                yield "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r"%(?:\.\d)?[sdrf]|\{[^}]*\}", "...", node.value)


def quoted(page: str) -> list[str]:
    """Sentences that begin an entry in bold, or a row of a table as code; symptoms, which are bold
    and end with a full stop, are none."""
    text = (DOCS / page).read_text()
    found = (" ".join(bold.split()) for bold in re.findall(r"^\*\*(.+?)\*\*", text, re.M | re.S))
    bold = [sentence for sentence in found if not sentence.endswith(".") or "..." in sentence]
    return bold + re.findall(r"^\| `([^`]+)`(?:, `[^`]+`)? \|", text, re.M)


SENTENCES = quoted("troubleshooting.md")


@pytest.fixture(scope="module")
def said() -> str:
    return "\n".join(" ".join(text.split()) for text in templates())


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_sentence_is_said(sentence: str, said: str) -> None:
    sentence = re.sub(r"^SpecKV (?!is|needs|was)", "", sentence)  # put before a refusal
    parts = (re.escape(part.strip()) for part in sentence.split("..."))
    assert re.search("[^\n]*?".join(parts), said), sentence


def test_a_sentence_that_nobody_says_is_found(said: str) -> None:
    assert len(SENTENCES) > 15
    assert not re.search(re.escape("sglang is as old as SpecKV"), said)


def rows() -> list[list[str]]:
    text = (DOCS / "compatibility.md").read_text()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()]
    return [row for row in cells if len(row) == 9 and row[0].startswith(("CPU", "CUDA"))]


@pytest.mark.parametrize("row", rows(), ids=" ".join)
def test_a_row_is_what_the_engine_decides(row: list[str]) -> None:
    engine, _, _, overlap, ranks, _, stops, widths, _ = row
    device = "cpu" if engine == "CPU" else "cuda"
    for tp in {"1": [1], "any": [1, 2]}.get(ranks, [2]):
        for on in {"on": [True], "off": [False]}.get(overlap, [True, False]):
            captured = "graphs" in engine
            no_stops, no_widths = why_not(SpecKVConfig(), device, tp, on, captured)
            assert (no_stops is None) == (stops != "no")
            assert (no_widths is None) == (widths == "yes")
    assert len(rows()) == 9


def test_the_tree_names_every_module() -> None:
    told = (DOCS / "architecture.md").read_text()
    package = ROOT / "sglang_speckv"
    rooms = ("", "policy", "srt", "ab", "calibrate")
    modules = [path for room in rooms for path in (package / room).glob("*.py")]
    stems = {path.stem for path in modules if not path.stem.startswith("_")}
    assert len(stems) > 70
    assert [stem for stem in sorted(stems) if not re.search(rf"\b{stem}\b", told)] == []


def first_cells(page: str, heading: str) -> set[str]:
    """What the first column of the first table under ``heading`` names as code."""
    section = (DOCS / page).read_text().partition(f"\n{heading}\n")[2].partition("\n## ")[0]
    table = re.search(r"(?:^\|.*\n)+", section, re.M)
    assert table is not None
    cells = [row.split("|")[1] for row in table[0].splitlines()]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_every_key_of_server_info_is_told() -> None:
    shapes = {"candidate_shapes", "launch_shape", "shape"}
    snapshot = EnginePolicy(SpecKVConfig(), 3).snapshot()
    told = first_cells("operating.md", "### What `/server_info` says")
    assert told == {*snapshot, *shapes}


def test_every_option_of_ab_is_told() -> None:
    assert first_cells("ab.md", "## Options") == {*Options.__struct_fields__}
