"""The walls of the house: who may import whom."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "sglang_speckv"
ALLOWED = {
    "config": set(),
    "files": {"config"},
    "policy": {"config"},
    "progress": set(),
    "provenance": set(),
    "demo": {"config", "files"},
    "ab": {"config", "files", "progress", "provenance", "demo"},
    "calibrate": {"policy", "offline", "ab", "config", "files", "progress", "provenance"},
    "ctl": {"config", "ab"},
    "offline": {"policy", "config", "files", "progress", "provenance"},
    "replay": {"policy", "offline", "ab", "config", "files", "progress", "provenance"},
    "srt": {"policy", "offline", "config", "files"},
}
HEAVY = {"sglang", "sgl_kernel", "torch"}
MAY_BE_HEAVY = {"srt": HEAVY, "offline": {"torch"}, "ab": {"torch"}, "demo": {"torch"}}


def imports(path: Path) -> set[str]:
    """Dotted names of everything that ``path`` imports, anywhere in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if room(path) in ALLOWED]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_only_what_they_may(path: Path) -> None:
    here = room(path)
    rooms = {name.split(".")[1] for name in imports(path) if name.startswith("sglang_speckv.")} & {
        "cli",
        *ALLOWED,
    }
    assert rooms <= ALLOWED[here] | {here}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_srt_imports_the_engine(path: Path) -> None:
    heavy = {name.split(".")[0] for name in imports(path)} & HEAVY
    assert heavy <= MAY_BE_HEAVY.get(room(path), set())


def test_the_package_imports_no_engine_by_itself() -> None:
    import subprocess
    import sys

    code = (
        "import sys, sglang_speckv, sglang_speckv.cli, sglang_speckv.policy; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'sglang')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
