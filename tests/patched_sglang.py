"""Copies of the installed SGLang with the patches of ``patches/`` applied."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from sglang_speckv.srt.patches_present import installed_package

PATCHES = sorted((Path(__file__).parents[1] / "patches").glob("*.patch"))


def touched(patch: Path) -> list[str]:
    """Files of the ``sglang`` package that ``patch`` changes."""
    return re.findall(r"^\+\+\+ b/python/sglang/(\S+)$", patch.read_text(), re.MULTILINE)


def copy_touched(package: Path, patches: Iterable[Path]) -> list[Path]:
    """Copy the files that ``patches`` change from the installed SGLang into ``package``."""
    copies = []
    for path in sorted({path for patch in patches for path in touched(patch)}):
        copy = package / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(installed_package() / path, copy)
        copies.append(copy)
    return copies


def git_apply(folder: Path, patch: Path, *options: str) -> None:
    """``git apply`` in ``folder``, which must lie outside every repository: inside of one git
    skips files that are not in its index and reports success."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    environment["GIT_CEILING_DIRECTORIES"] = str(folder.resolve().parent)
    subprocess.run(
        ["git", "apply", *options, str(patch)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )


def patched_package(folder: Path, patches: Sequence[Path] = PATCHES) -> Path:
    """``folder``/sglang: links to the installed package, the touched files patched copies.

    With ``folder`` first on PYTHONPATH every process imports it instead of the installed one.
    """
    package = folder / "sglang"
    copies = copy_touched(package, patches)
    _link_rest(installed_package(), package, copies)
    for patch in patches:
        git_apply(folder, patch, "-p2")
    return package


def _link_rest(source: Path, target: Path, copies: Sequence[Path]) -> None:
    """Link everything of ``source`` that ``target`` lacks; bytecode too, which checks the time
    and the size of its source, but not that of a patched file."""
    target.mkdir(exist_ok=True)
    inside = {copy.name.removesuffix(".py") for copy in copies if copy.parent == target.parent}
    for entry in source.iterdir():
        place = target / entry.name
        if place.is_dir() or (entry.name == "__pycache__" and target in {c.parent for c in copies}):
            _link_rest(entry, place, copies)
        elif not place.exists() and not (
            target.name == "__pycache__" and entry.name.split(".")[0] in inside
        ):
            place.symlink_to(entry)
