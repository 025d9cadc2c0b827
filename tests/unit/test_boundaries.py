"""The walls of the house: who may import whom."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "sglang_speckv"
ALLOWED = {
    "config": set(),
    "files": {"config"},
    "policy": {"config"},
    "demo": {"config", "files"},
    "bench": {"demo", "config", "files"},
    "offline": {"policy", "bench", "config", "files"},
    "srt": {"policy", "offline", "config", "files"},
}
REPLAY = PACKAGE / "bench" / "replay"
"""The one part of bench that knows the players: it runs them."""
HEAVY = {"sglang", "sgl_kernel", "torch"}
MAY_BE_HEAVY = {"srt": HEAVY, "offline": {"torch"}, "bench": {"torch"}, "demo": {"torch"}}


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


def is_datasets(path: Path, name: str) -> bool:
    """The judge may use SGLang's benchmark data sets, which are not its runtime."""
    return room(path) == "bench" and name.startswith("sglang.benchmark.datasets")


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if room(path) in ALLOWED]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_only_what_they_may(path: Path) -> None:
    here = room(path)
    rooms = {name.split(".")[1] for name in imports(path) if name.startswith("sglang_speckv.")} & {
        "cli",
        *ALLOWED,
    }
    more = {"policy", "offline"} if REPLAY in path.parents else set()
    assert rooms <= ALLOWED[here] | {here} | more


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_srt_imports_the_engine(path: Path) -> None:
    heavy = {name.split(".")[0] for name in imports(path) if not is_datasets(path, name)} & HEAVY
    assert heavy <= MAY_BE_HEAVY.get(room(path), set())


def test_the_package_imports_no_engine_by_itself() -> None:
    import subprocess
    import sys

    code = (
        "import sys, sglang_speckv, sglang_speckv.cli, sglang_speckv.policy; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'sglang')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
