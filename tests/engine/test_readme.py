"""Every command of the README is parsed by the real thing."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from sglang_speckv.cli import app
from sglang_speckv.srt.serve import parse

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", "examples/prompts/README.md"]


def commands() -> list[str]:
    """Indented command lines, continuation lines joined, and `speckv ...` in running text."""
    found: list[str] = []
    for document in DOCUMENTS:
        text = (ROOT / document).read_text().replace("\\\n", " ")
        found += re.findall(r"^ {4}((?:speckv|sglang|make)\s.*)$", text, re.MULTILINE)
        found += re.findall(r"`((?:speckv|make) [^`\n]+)`", text)
    return [command.split("  #")[0] for command in found]


@pytest.mark.parametrize("command", commands())
def test_command_parses(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECKV_CACHE", str(tmp_path))
    program, verb, *rest = shlex.split(command)
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert verb in targets
    elif verb in ("serve", "doctor"):
        asked = [word for word in rest if word not in ("...", "--json")]
        assert parse(asked if "--model-path" in asked else ["--model-path", "dummy", *asked])
    else:
        typer.main.get_command(app).make_context("speckv", [verb, *rest], resilient_parsing=False)


def test_the_readme_shows_commands() -> None:
    assert len(commands()) > 5
