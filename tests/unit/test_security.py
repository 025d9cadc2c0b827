"""What docs/security.md says: its tests exist, and what no single test of a module can hold."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from sglang_speckv.ab.process import Server

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "security.md"
CLAIMS = re.findall(r"^- .*?(?=^- |^#|\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"`(tests/\S+\.py)::(\w+)`")
LOADERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
CALLS = {"eval", "exec", "compile", "__import__"}
UNSAFE = {("torch", "load"), ("np", "load"), ("numpy", "load"), ("yaml", "load"), ("os", "system")}
FILES = sorted((ROOT / "sglang_speckv").rglob("*.py"))


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: " ".join(claim[2:50].split()))
def test_every_claim_has_a_test(claim: str) -> None:
    named = NAMED.findall(claim)
    assert named
    for path, name in named:
        defined = {
            node.name
            for node in ast.walk(ast.parse((ROOT / path).read_text()))
            if isinstance(node, ast.FunctionDef)
        }
        assert name in defined, f"{path} has no {name}"


def test_nothing_is_unpickled_or_run() -> None:
    found = {str(path): _dangers(ast.parse(path.read_text())) for path in FILES}
    assert len(found) > 100 and not any(found.values()), found


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from marshal import loads",
        "def f():\n    import dill.source",
        "eval(text)",
        "torch.load(path)",
        "yaml.load(text)",
        "subprocess.run(text, shell=True)",
        "np.load(path, allow_pickle=True)",
        "get(path, trust_remote_code=True)",
    ],
)
def test_what_would_is_seen(code: str) -> None:
    assert _dangers(ast.parse(code))


def _dangers(tree: ast.AST) -> list[str]:
    found: list[str | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in LOADERS]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] if (node.module or "").split(".")[0] in LOADERS else []
        elif isinstance(node, ast.Call):
            found += _dangerous(node)
    return [name for name in found if name]


def _dangerous(call: ast.Call) -> list[str]:
    function = call.func
    found = []
    if isinstance(function, ast.Name) and function.id in CALLS:
        found.append(function.id)
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        name = (function.value.id, function.attr)
        found += [".".join(name)] if name in UNSAFE else []
    for keyword in call.keywords:
        on = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
        if on and keyword.arg in ("shell", "allow_pickle", "trust_remote_code"):
            found.append(keyword.arg)
    return found


def test_servers_of_a_comparison_listen_here_only(tmp_path: Path) -> None:
    server = Server("one", ["--model-path", "x"], tmp_path / "log")
    assert server.argv[server.argv.index("--host") + 1] == "127.0.0.1"
