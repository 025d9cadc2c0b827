"""Where a result came from."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

_PACKAGE = Path(__file__).resolve().parent
MEASURED_ROOMS = ("policy", "srt")
"""What decides and what acts: what a measured figure is of."""
_PACKAGES = (
    *("sglang-speckv", "sglang", "sglang-kernel", "torch", "transformers"),
    *("flashinfer-python", "numpy"),
)


def provenance() -> dict[str, Any]:
    return {
        "command": [Path(sys.argv[0]).name, *map(shown_path, sys.argv[1:])],
        "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "git": _git("rev-parse", "HEAD"),
        "git_dirty": None if (status := _git("status", "--porcelain")) is None else status != "",
        "code": {room: code_digest(room) for room in MEASURED_ROOMS},
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpus": _gpu_names(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def code_digest(room: str) -> str:
    """Of all Python files of one room of this package: a figure is of the code that it was measured
    on, whatever a commit did elsewhere."""
    digest = hashlib.sha256()
    folder = _PACKAGE / room
    for file in sorted(folder.rglob("*.py")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(folder).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def shown_path(text: str) -> str:
    """``text`` without what is this machine's own: as a reader could type it. Paths are shown from
    the checkout or from the home directory on, others by their last part."""
    near = text.replace(f"{_PACKAGE.parent}/", "").replace(str(Path.home()), "~")
    return re.sub(r"(?<![\w:/~.])/(?:[^\s/:'\"]+/)*([^\s/:'\"]+)", r"\1", near)


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _git(*args: str) -> str | None:
    """None unless this very file is tracked: a virtual environment may lie in a repository of
    something else."""
    # `git status` would write the index, under a lock that it leaves behind where it is killed.
    here = ("git", "--no-optional-locks", "-C", str(Path(__file__).parent))
    tracked = _output(*here, "ls-files", "--error-unmatch", Path(__file__).name)
    return None if tracked is None else _output(*here, *args)


def _gpu_names() -> list[str]:
    names = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return names.splitlines() if names else []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), "")
