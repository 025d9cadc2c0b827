"""Files that may be missing, huge or half-written: bounded reads, writes that are whole or not at
all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sglang_speckv.config import ConfigError

BAD_JSON = (ValueError, RecursionError)
"""What ``json`` and ``msgspec`` raise for bytes that are not the JSON that was expected: of another
type, in another encoding, cut off, or nested too deep. :class:`ConfigError` is one of them."""


def read_bounded(path: Path, limit: int, remedy: str = "check the path") -> bytes:
    """All of ``path``, of which no more than ``limit`` bytes are ever read.

    Raises:
        ConfigError: it cannot be read or is larger; the sentence ends in ``remedy``.
    """
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {str(path)!r} ({error.strerror}); {remedy}") from error
    if len(content) > limit:
        raise ConfigError(f"{str(path)!r} is over {limit >> 20} MiB; {remedy}")
    return content


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """``write`` gets a scratch path beside ``path``, which replaces it only when done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        scratch = Path(folder) / path.name
        write(scratch)
        os.replace(scratch, path)


def write_json(path: Path, value: Any) -> None:
    """Indented, for people who look into results; atomically."""
    import msgspec

    content = msgspec.json.format(msgspec.json.encode(value), indent=1)
    write_atomically(path, lambda scratch: scratch.write_bytes(content))
