"""Every reader of JSON that a user or a server hands us names it where it cannot be read."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from sglang_speckv.ab.client import Client, ServerError
from sglang_speckv.ab.journal import read_journal
from sglang_speckv.ab.prompts import find_prompts
from sglang_speckv.config import ConfigError
from sglang_speckv.demo.drafts import _read_recipe, algorithm_of
from sglang_speckv.offline.artifact import load_artifact
from sglang_speckv.offline.records import read_trace
from sglang_speckv.replay.cost import _prior_from
from sglang_speckv.replay.positions import read_positions
from sglang_speckv.srt import carrier

DEEP = b"[" * 100_000 + b"]" * 100_000
BAD = {
    "deep": DEEP,
    "deep inside": b'{"id": "a", "prompt": "x", "a": ' + DEEP + b"}",
    "latin": b'{"id": "\xff", "schema": "\xff"}',
    "cut": b'{"a": [1, ',
    "number": b"3",
    "list": b'[3, {"x": 1}]',
    "odd": b'{"body": 3, "rows": 3, "files": 3, "cells": 3, "architectures": 3, "speckv": 3}',
}


def _prompts(path: Path) -> object:
    return find_prompts(str(path.rename(path.with_suffix(".jsonl"))))


def _list(path: Path) -> object:
    return find_prompts(str(path))


def _trace(path: Path) -> object:
    packed = path.with_suffix(".jsonl.gz")
    packed.write_bytes(gzip.compress(path.read_bytes() + b"\n"))
    return read_trace(packed)


def _answer(path: Path) -> object:
    return Client.decode(Client("x", "http://x"), path.read_bytes(), list[bool], "/x")


def _artifact(path: Path) -> object:
    save_file({}, path, {"speckv": path.read_text(errors="replace")})
    return load_artifact(path)


def _header(path: Path) -> object:
    return load_artifact(_as_header(path))


def _as_header(path: Path) -> Path:
    header = path.read_bytes()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return path


def _positions(path: Path) -> object:
    save_file({}, path, {"speckv": path.read_text(errors="replace")})
    return read_positions(path)


def _draft(path: Path) -> object:
    (path.parent / "config.json").write_bytes(path.read_bytes())
    return algorithm_of(path.parent)


READERS: dict[str, Callable[[Path], Any]] = {
    "journal": lambda path: (path.write_bytes(path.read_bytes() + b"\n"), read_journal(path)),
    "recipe": _read_recipe,
    "draft": _draft,
    "prompts": _prompts,
    "prompt list": _list,
    "cost": _prior_from,
    "trace": _trace,
    "artifact": _artifact,
    "artifact header": _header,
    "positions": _positions,
    "positions header": lambda path: read_positions(_as_header(path)),
    "answer": _answer,
    "adaptive config": lambda path: carrier.read(str(path)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", BAD)
def test_one_sentence(reader: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(BAD[kind])
    with pytest.raises((ConfigError, ServerError)) as caught:
        READERS[reader](path)
    assert "\n" not in str(caught.value)
