"""Where a result came from: the commit of this code, and never that of something around it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sglang_speckv import provenance as module
from sglang_speckv.provenance import provenance, shown_path

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="no git here")


def git(folder: Path, *args: str) -> str:
    names = ("-c", "user.name=a", "-c", "user.email=a@b")
    command = ["git", "-C", str(folder), *names, *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with this module in it, not yet committed; the module's own file."""
    file = tmp_path / "sglang_speckv" / "provenance.py"
    file.parent.mkdir(parents=True)
    shutil.copy(module.__file__, file)
    monkeypatch.setattr(module, "__file__", str(file))
    monkeypatch.setattr(module, "_PACKAGE", file.parent)
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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{checkout}/examples/x.yaml", "examples/x.yaml"),
        ("{home}/models", "~/models"),
        ("--minutes", "--minutes"),
        ("/data/of/mine/records", "records"),
        ("--out=/tmp/n/tap.json", "--out=tap.json"),
        ("EAGLE3=/a/b/head", "EAGLE3=head"),
        ("http://host:1/v1/x", "http://host:1/v1/x"),
        ("1/2 of examples/traces", "1/2 of examples/traces"),
        ("the end of /tmp/x/y.log:", "the end of y.log:"),
    ],
)
def test_paths_are_shown_as_a_reader_could_type_them(
    package: Path, tmp_path: Path, text: str, shown: str
) -> None:
    assert shown_path(text.format(checkout=tmp_path, home=Path.home())) == shown


def test_the_digest_is_of_the_rooms_code(package: Path, tmp_path: Path) -> None:
    room = package.parent / "policy"
    (room / "deep").mkdir(parents=True)
    (room / "deep" / "a.py").write_text("a")
    before = module.code_digest("policy")
    (room / "notes.txt").write_text("not code")
    (package.parent / "b.py").write_text("another room")
    assert module.code_digest("policy") == before
    (room / "deep" / "a.py").rename(room / "a.py")
    moved = module.code_digest("policy")
    (room / "a.py").write_text("b")
    assert len({before, moved, module.code_digest("policy")}) == 3
    assert provenance()["code"]["policy"] == module.code_digest("policy")
