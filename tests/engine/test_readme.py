"""Every command, Python block and JSON body of every document is taken by the real thing."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from sglang_speckv.ab import command
from sglang_speckv.cli import main
from sglang_speckv.config import SpecKVConfig
from sglang_speckv.srt.serve import parse

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
PROGRAMS = "speckv|sglang|make|python|pytest|pip|git|patch|curl"
SHORT = ("speckv replay examples/", "python examples/signals_report.py examples/")
"""Commands that begin so are run to their end, replays once through the answers."""

PLACEHOLDERS = ("...", "artifact.safetensors", "--json")
"""What stands for a reader's own flags and files, and what `doctor` takes out itself."""


def documents() -> list[Path]:
    """Every ``*.md`` that is or can be committed."""
    asked = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.check_output([*asked, "*.md"], text=True).splitlines()
    return [ROOT / name for name in sorted(names)]


def blocks(text: str) -> list[str]:
    """What is fenced or indented by four spaces, continuation lines joined."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"(?:(?<=\n\n)|\A)((?: {4}.*\n|\n(?= {4}))+)", text)
    found = [*fenced, *(re.sub(r"^ {4}", "", block, flags=re.MULTILINE) for block in indented)]
    return [block.replace("\\\n", " ") for block in found]


def inline(text: str) -> list[str]:
    """Code in running text, on one line."""
    prose = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]


def lines_of(text: str) -> Iterator[str]:
    """Lines of code; what a shell function of the block stands for is put in its place."""
    for block in blocks(text):
        functions = dict(re.findall(r'^(\w+)\(\) \{ (.+?)"\$@"; \}$', block, re.MULTILINE))
        for line in block.splitlines():
            name, _, rest = line.partition(" ")
            yield functions[name] + rest.strip() if name in functions else line
    yield from inline(text)


def commands(text: str) -> list[str]:
    """Without comments and the variables set for one command."""
    wanted = re.compile(rf"(?:[A-Z_]+=\S+ )*((?:{PROGRAMS}) .+)")
    found = [wanted.fullmatch(re.split(r"\s+#", line)[0].strip()) for line in lines_of(text)]
    return [match[1] for match in found if match]


def in_documents(find: Callable[[str], Sequence[str]]) -> Any:
    """One test for each thing that ``find`` finds."""
    found = {
        code: pytest.param(code, id=f"{path.relative_to(ROOT)}: {code.splitlines()[0][:60]}")
        for path in documents()
        for code in find(path.read_text())
    }
    return pytest.mark.parametrize("code", found.values())


class Parsed(BaseException):
    """Raised in place of what a command would do once its arguments are parsed."""


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``speckv`` verbs and scripts end when their arguments are parsed; the options of ``ab`` and
    ``demo`` are checked before that, files of options read."""

    def parsed(*_: Any, **__: Any) -> None:
        raise Parsed

    invoke = typer.core.TyperCommand.invoke

    def invoke_or_end(self: Any, context: Any) -> Any:
        return invoke(self, context) if self.name in ("ab", "demo") else parsed()

    monkeypatch.setattr(typer.core.TyperCommand, "invoke", invoke_or_end)
    monkeypatch.setattr(command, "run_ab", parsed)
    monkeypatch.setenv("SPECKV_CACHE", str(tmp_path))
    monkeypatch.chdir(ROOT)


@in_documents(commands)
def test_command(code: str, parse_only: None, monkeypatch: pytest.MonkeyPatch) -> None:
    program, *words = shlex.split(code)
    check_paths(words)
    CHECKS.get(program, lambda words, monkeypatch: None)(words, monkeypatch)


def check_paths(words: Sequence[str]) -> None:
    """What is named of this repository is there."""
    for word in words:
        named = word.rpartition("=")[2].removeprefix("/path/to/")
        if re.match(r"(examples|benchmarks|patches|tests|docs|sglang_speckv)/", named):
            assert (ROOT / named).exists(), named


def check_speckv(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    verb, *rest = words
    if verb in ("serve", "doctor"):
        asked = [word for word in rest if word not in PLACEHOLDERS]
        assert parse(asked if "--model-path" in asked else ["--model-path", "dummy", *asked])
        return
    monkeypatch.setattr(sys, "argv", ["speckv", *words] if rest else ["speckv", verb, "--help"])
    with pytest.raises(Parsed if rest else SystemExit) as ended:
        main()
    assert rest or ended.value.code == 0


def check_sglang(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert words[0] == "serve"
    check_speckv(["serve", *(word for word in words[1:] if word != "--help")], monkeypatch)


def check_python(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts that take arguments parse these; others are there."""
    name, rest = (words[1], words[2:]) if words[0] == "-m" else (words[0], words[1:])
    spec = importlib.util.find_spec(name) if words[0] == "-m" else None
    script = Path(spec.origin if spec is not None and spec.origin else name)
    if not script.is_relative_to(ROOT) and words[0] == "-m":
        return  # somebody else's
    if not re.search(r"\b(ArgumentParser|typer|parser)\b", script.read_text()):
        assert not rest
        return
    parse_args = ArgumentParser.parse_args

    def parse_and_end(self: ArgumentParser, *args: Any, **kwargs: Any) -> None:
        parse_args(self, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(ArgumentParser, "parse_args", parse_and_end)
    monkeypatch.setattr(sys, "argv", [str(script), *rest])
    with pytest.raises(Parsed):
        if words[0] == "-m":
            runpy.run_module(name, run_name="__main__")
        monkeypatch.setattr(sys, "path", [str(script.parent), *sys.path])
        runpy.run_path(str(script), run_name="__main__")


def check_make(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        variable, is_set, _ = word.partition("=")
        found = rf"\$\([^)]*{variable}\b" if is_set else rf"^{word}:"
        assert re.search(found, makefile, re.MULTILINE), word


def check_pytest(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    markers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    parser = ArgumentParser()
    parser.add_argument("-m", choices=[line.split(":")[0] for line in markers["markers"]])
    parser.add_argument("-k")
    parser.add_argument("paths", nargs="*")
    assert parser.parse_args(words).paths


def check_pip(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is pinned is what this package asks for."""
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {word for word in words if "==" in word} <= set(asked)


def check_patch(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "-p2" in words and any(word.endswith(".patch") for word in words)


def check_curl(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A route of SGLang's server; a body with values that SpecKV takes."""
    from sglang.srt.entrypoints.http_server import app

    (url,) = (word for word in words if word.startswith("localhost:"))
    methods = {getattr(route, "path", ""): getattr(route, "methods", ()) for route in app.routes}
    path = "/" + url.partition("/")[2]
    assert ("POST" if "-d" in words else "GET") in methods[path]
    if "-d" in words:
        body = json.loads(words[words.index("-d") + 1])
        check_body = {"/set_internal_state": check_state, "/generate": check_generate}
        check_body[path](body)


def check_generate(body: dict[str, Any]) -> None:
    from sglang.srt.managers.io_struct import GenerateReqInput
    from sglang.srt.sampling.sampling_params import SamplingParams

    from sglang_speckv.srt.bounds import Bounds, problem

    asked = SamplingParams(**GenerateReqInput(**body).sampling_params)
    assert problem(asked.custom_params) is None
    assert Bounds.of([SimpleNamespace(sampling_params=asked)]).most is not None


def check_state(body: dict[str, Any]) -> None:
    from sglang.srt.managers.io_struct import SetInternalStateReq

    from sglang_speckv.srt.controller import EnginePolicy
    from sglang_speckv.srt.state import add_handlers

    worker = SimpleNamespace(speckv=EnginePolicy(SpecKVConfig(), 3))
    handlers = add_handlers({}, SimpleNamespace(scheduler=SimpleNamespace(draft_worker=worker)))
    for key, value in SetInternalStateReq(**body).server_args.items():
        handlers[key].validate(key, value)


CHECKS = {
    "speckv": check_speckv,
    "sglang": check_sglang,
    "python": check_python,
    "make": check_make,
    "pytest": check_pytest,
    "pip": check_pip,
    "patch": check_patch,
    "curl": check_curl,
}


@in_documents(lambda text: [code for code in commands(text) if code.startswith(SHORT)])
def test_short_command_runs(
    code: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    program, *words = shlex.split(code)
    if words[0] == "replay" and "--explain" not in words:
        words += ["--seeds", "1", "--passes", "1", "--jobs", "1"]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", words if program == "python" else [program, *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(words[0], run_name="__main__") if program == "python" else main()
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])


@in_documents(lambda text: [b for b in blocks(text) if b.startswith(("from ", "import "))])
def test_python_block(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs; engines are only told what to serve, in keywords of SGLang's own."""
    from sglang.srt.server_args import ServerArgs

    from sglang_speckv.srt import profile_load

    told: list[dict[str, Any]] = []
    monkeypatch.setattr("sglang.Engine", lambda **arguments: told.append(arguments))
    monkeypatch.setattr(profile_load, "profile_engine", lambda engine: None)
    exec(compile(code, "document", "exec"), {})
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    assert len(told) == sum(ast.unparse(call.func) == "Engine" for call in calls)
    for arguments in told:
        ServerArgs(**arguments)


@in_documents(lambda text: [code for code in inline(text) if code.startswith('{"')])
def test_json(code: str) -> None:
    held = json.loads(code)
    assert SpecKVConfig.from_dict(held.get("speckv", {}))


def test_documents_show_what_is_tested_here() -> None:
    texts = {path.relative_to(ROOT).as_posix(): path.read_text() for path in documents()}
    assert {"README.md", "docs/ab.md", "patches/README.md"} <= set(texts)
    found = {name: commands(text) for name, text in texts.items()}
    programs = {command.split()[0] for shown in found.values() for command in shown}
    assert programs == set(PROGRAMS.split("|"))
    assert all(len(found[name]) > 5 for name in ("README.md", "examples/train_drafts/README.md"))
    assert any("\n" in block and "Engine(" in block for block in blocks(texts["README.md"]))
