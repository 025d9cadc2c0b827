"""Where a result came from: the commit of this code, and never that of something around it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sglang_speckv.bench import provenance as module
from sglang_speckv.bench.provenance import provenance, shown_path

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="no git here")


def git(folder: Path, *args: str) -> str:
    names = ("-c", "user.name=a", "-c", "user.email=a@b")
    command = ["git", "-C", str(folder), *names, *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with this module in it, not yet committed; the module's own file."""
    file = tmp_path / "sglang_speckv" / "bench" / "provenance.py"
    file.parent.mkdir(parents=True)
    shutil.copy(module.__file__, file)
    monkeypatch.setattr(module, "__file__", str(file))
    (tmp_path / "other").touch()
    git(tmp_path, "init")
    git(tmp_path, "add", "other")
    git(tmp_path, "commit", "--message", "something else")
    return file


def test_a_repository_around_the_package_is_not_its_own(package: Path) -> None:
    found = provenance()
    assert (found["git"], found["git_dirty"]) == (None, None)


def test_the_commit_and_whether_it_is_what_runs(package: Path, tmp_path: Path) -> None:
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--message", "the package")
    found = provenance()
    assert (found["git"], found["git_dirty"]) == (git(tmp_path, "rev-parse", "HEAD"), False)
    package.write_text("# changed")
    assert provenance()["git_dirty"] is True


def test_asking_writes_nothing_into_the_repository(package: Path, tmp_path: Path) -> None:
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--message", "the package")
    os.utime(package, (1, 1))  # what git noted of the file is out of date
    index = tmp_path / ".git" / "index"
    before = index.read_bytes()
    assert provenance()["git_dirty"] is False
    assert index.read_bytes() == before


def test_paths_are_shown_without_this_machines_own(package: Path, tmp_path: Path) -> None:
    assert shown_path(f"{tmp_path}/examples/x.yaml") == "examples/x.yaml"
    assert shown_path(str(Path.home() / "models")) == "~/models"
    assert shown_path("--minutes") == "--minutes"
