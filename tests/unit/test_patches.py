"""Each patch applies to the pinned SGLang alone and with the others, and can be undone."""

import ast
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sglang_speckv.srt import compat, patches_present
from sglang_speckv.srt.patches_present import installed_package
from tests.patched_sglang import PATCHES, copy_touched, git_apply, patched_package, touched

pytestmark = [
    pytest.mark.skipif(shutil.which("git") is None, reason="no git here to apply patches with"),
    pytest.mark.skipif(
        bool(patches_present.present()), reason="the installed SGLang is patched already"
    ),
]

ROOT = Path(__file__).parents[2]
EACH = pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
LAYOUTS = {"upstream": ("python/sglang", "-p1"), "installed": ("sglang", "-p2")}


def contents(files: list[Path]) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in files}


@EACH
@pytest.mark.parametrize("layout", LAYOUTS)
def test_applies_alone_and_undoes(patch: Path, layout: str, tmp_path: Path) -> None:
    where, strip = LAYOUTS[layout]
    files = copy_touched(tmp_path / where, [patch])
    stock = contents(files)
    git_apply(tmp_path, patch, strip)
    for file in files:
        assert file.read_bytes() != stock[file]
        compile(file.read_text(), str(file), "exec")
    assert patches_present.present(tmp_path / where) == [patch.stem]
    git_apply(tmp_path, patch, strip, "-R")
    assert contents(files) == stock
    assert patches_present.present(tmp_path / where) == []


@pytest.mark.parametrize("order", [PATCHES, PATCHES[::-1]], ids=["in order", "reversed"])
def test_all_apply_together(order: list[Path], tmp_path: Path) -> None:
    files = copy_touched(tmp_path / "sglang", order)
    stock = contents(files)
    for patch in order:
        git_apply(tmp_path, patch, "-p2")
    for file in files:
        compile(file.read_text(), str(file), "exec")
    assert patches_present.present(tmp_path / "sglang") == [patch.stem for patch in PATCHES]
    for patch in order:
        git_apply(tmp_path, patch, "-p2", "-R")
    assert contents(files) == stock


@EACH
def test_the_seams_stay_where_they_are(patch: Path, tmp_path: Path) -> None:
    """Every function that SpecKV hooks or overrides keeps its parameters."""
    copy_touched(tmp_path / "sglang", [patch])
    git_apply(tmp_path, patch, "-p2")
    targets = (
        *compat.LAUNCHER_HOOKS,
        *compat.SCHEDULER_HOOKS,
        *compat.CPU_HOOKS,
        *compat.WORKER_SEAMS,
    )
    for target in targets:
        module, names = _split(target.path)
        if f"{module}.py" in touched(patch):
            source = (tmp_path / "sglang" / f"{module}.py").read_text()
            assert _parameters(source, names) == target.parameters, target.path


@EACH
def test_what_the_worker_restates_is_known(patch: Path, tmp_path: Path) -> None:
    module, names = _split(compat.APPLY_STATE)
    file = f"{module}.py"
    stock = (installed_package() / file).read_text()
    assert _digest(stock, names) in compat.APPLY_STATE_SOURCES
    if file in touched(patch):
        copy_touched(tmp_path / "sglang", [patch])
        git_apply(tmp_path, patch, "-p2")
        patched = (tmp_path / "sglang" / file).read_text()
        assert _digest(patched, names) in compat.APPLY_STATE_SOURCES


def _split(path: str) -> tuple[str, list[str]]:
    """``sglang.srt.a.b.Class.method`` as ``srt/a/b`` and ``[Class, method]``."""
    parts = path.split(".")[1:]
    first = next((i for i, part in enumerate(parts) if part[0].isupper()), len(parts) - 1)
    return "/".join(parts[:first]), parts[first:]


def _function(source: str, names: list[str]) -> ast.FunctionDef:
    node: ast.AST = ast.parse(source)
    for name in names:
        node = next(child for child in ast.iter_child_nodes(node) if _named(child, name))
    assert isinstance(node, ast.FunctionDef)
    return node


def _digest(source: str, names: list[str]) -> str:
    node = _function(source, names)
    lines = source.splitlines(keepends=True)[node.lineno - 1 : node.end_lineno]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _parameters(source: str, names: list[str]) -> tuple[str, ...]:
    node = _function(source, names)
    arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    return tuple(a.arg for a in arguments if a.arg not in ("self", "cls"))


def _named(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name


@EACH
def test_small_and_described(patch: Path) -> None:
    text = patch.read_text()
    assert text.startswith("Subject: [PATCH] ")
    assert len(text[text.index("diff --git") :].splitlines()) < 110
    assert patch.name in (ROOT / "patches" / "README.md").read_text()


def test_a_patched_copy_is_the_one_that_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `speckv doctor` asks, and what the engine tests run from."""
    patched_package(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    code = "from sglang_speckv.srt.patches_present import present; print(*present())"
    shown = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert shown.split() == [patch.stem for patch in PATCHES]
    assert patches_present.present() == []


def test_each_patch_can_be_recognised() -> None:
    assert [patch.stem for patch in PATCHES] == list(patches_present.MARKERS)
