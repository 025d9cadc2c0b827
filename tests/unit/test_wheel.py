"""The package as others get it: a wheel, installed where there is no clone."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sglang_speckv import __version__

pytestmark = pytest.mark.xdist_group("wheel")  # built once
ROOT = Path(__file__).parents[2]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
BUILD = ("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir")
INSTALL = ("install", "--no-deps", "--no-index", "--no-compile", "--target")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the installed wheel. It is built from a copy, as building leaves
    files in the tree, and without a network."""
    root = tmp_path_factory.mktemp("wheel")
    source, wheels, site = root / "source", root / "wheels", root / "site"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "sglang_speckv", source / "sglang_speckv", ignore=ignored)
    subprocess.run([*PIP, *BUILD, wheels, source], check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*PIP, *INSTALL, site, wheel], check=True)
    return site


def run(site: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """``command`` from another folder, with the installed wheel before everything else; what it
    wants to download it cannot have."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(site),
        "PYTHONDONTWRITEBYTECODE": "1",
        "COLUMNS": "200",
        "SPECKV_CACHE": str(site.parent / "cache"),
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    }
    return subprocess.run(
        command, cwd=site.parent, env=environment, capture_output=True, text=True, timeout=120
    )


def said(site: Path, code: str) -> str:
    """What a Python program prints that has the wheel only."""
    done = run(site, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_it_is_the_wheel_that_runs(site: Path) -> None:
    assert Path(said(site, "import sglang_speckv as s; print(s.__file__)")).parents[1] == site


def test_the_command_line(site: Path) -> None:
    speckv = site / "bin" / "speckv"
    assert run(site, speckv, "--version").stdout == f"speckv {__version__}\n"
    shown = run(site, speckv, "--help").stdout
    assert set(re.findall(r"^  (\w+)  ", shown, re.MULTILINE)) == {
        *("serve", "ab", "calibrate", "ctl", "demo", "replay", "train", "doctor"),
    }
    assert "--quick" in run(site, speckv, "demo", "--help").stdout


def test_entry_points_are_there(site: Path) -> None:
    (distribution,) = importlib.metadata.distributions(name="sglang-speckv", path=[str(site)])
    assert distribution.version == __version__
    assert {(entry.group, entry.name, entry.value) for entry in distribution.entry_points} == {
        ("console_scripts", "speckv", "sglang_speckv.cli:main"),
        ("sglang.srt.plugins", "speckv", "sglang_speckv.srt.plugin:register"),
    }


def test_every_module_of_the_clone_is_in_it(site: Path) -> None:
    ours, installed = (
        {str(file.relative_to(root)) for file in root.glob("sglang_speckv/**/*.py")}
        for root in (ROOT, site)
    )
    assert installed == ours


def test_the_default_prompts_are_in_it(site: Path) -> None:
    code = "from sglang_speckv.ab.prompts import load_prompts; print(len(load_prompts()))"
    assert said(site, code) == "96"


def test_the_demo_says_where_its_drafts_are(site: Path) -> None:
    refused = run(site, site / "bin" / "speckv", "demo", "--quick")
    assert (refused.returncode, refused.stdout) == (2, "")
    (line,) = refused.stderr.splitlines()
    assert line.startswith("speckv: the demo drafts (eagle3) are a package of their own")
    assert "pip install CLONE/examples/models" in line and "--draft PATH" in line


def test_the_demo_finds_its_drafts_in_their_own_wheel(site: Path, tmp_path: Path) -> None:
    source, wheels, drafts = tmp_path / "source", tmp_path / "wheels", tmp_path / "drafts"
    shutil.copytree(ROOT / "examples" / "models", source, ignore=shutil.ignore_patterns("model.*"))
    for name in ("eagle3", "standalone"):
        (source / name / "model.safetensors").write_bytes(b"weights")  # the real ones take seconds
    subprocess.run([*PIP, *BUILD, wheels, source], check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*PIP, *INSTALL, drafts, wheel], check=True)
    code = (
        f"import sys; sys.path.append({str(drafts)!r})\n"
        "from sglang_speckv.demo.drafts import check_demo_drafts, _folder\n"
        "check_demo_drafts(['eagle3', 'standalone'])\n"
        "print(*sorted(p.relative_to(_folder()) for p in _folder().glob('*/*')))"
    )
    assert said(site, code).split() == [
        f"{name}/{file}"
        for name in ("eagle3", "standalone")
        for file in ("assemble.json", "config.json", "model.safetensors")
    ]


@pytest.mark.skipif(shutil.which("git") is None, reason="no git here")
def test_a_repository_around_it_is_not_its_own(site: Path) -> None:
    """As where a virtual environment lies in the repository of another project."""
    subprocess.run(["git", "init", "--quiet", site.parent], check=True)
    commit = ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--allow-empty"]
    subprocess.run(["git", "-C", site.parent, *commit, "--message", "theirs"], check=True)
    code = (
        "from sglang_speckv.provenance import provenance as p; print(p()['git'])\n"
        "print(p()['versions']['sglang-speckv'])"
    )
    assert said(site, code).split() == ["None", __version__]


DISTRIBUTIONS = {"yaml": "pyyaml", "prometheus_client": "prometheus-client"}
OWN = {"sglang_speckv", "sgl_kernel"}
"""The second is the CPU engine's own shim."""


def test_what_is_imported_is_declared() -> None:
    """Not left to what other packages happen to bring."""
    imported: set[str] = set()
    for path in (ROOT / "sglang_speckv").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module or "")
    packages = {name.split(".")[0] for name in imported} - set(sys.stdlib_module_names) - OWN
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split("[<>=;]", asked)[0] for asked in project["dependencies"]}
    assert {DISTRIBUTIONS.get(name, name) for name in packages} == declared
    locked = set(re.findall(r"^([\w-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert declared <= locked


def test_it_says_that_it_is_typed(site: Path) -> None:
    assert (site / "sglang_speckv" / "py.typed").exists()
