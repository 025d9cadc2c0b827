"""Prompts in classes, from ``*.jsonl`` files of ``{"id", "class", "prompt"}`` records."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import msgspec

from sglang_speckv.config import ConfigError

DEMO_PROMPTS = Path(__file__).resolve().parents[2] / "examples" / "prompts"
_MAX_FILE_BYTES = 16 << 20


class Prompt(msgspec.Struct, frozen=True, rename={"kind": "class"}):
    """One request's text; ``kind`` is its class, such as "code"."""

    id: str
    kind: str
    prompt: str


def load_prompts(folder: Path = DEMO_PROMPTS) -> list[Prompt]:
    """All prompts of a folder, classes taking turns, so that any run of them is balanced."""
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise ConfigError(
            f"{folder} holds no *.jsonl prompts; run from a clone of the repository, or pass "
            "--prompts FOLDER"
        )
    by_class: dict[str, list[Prompt]] = {}
    seen: set[str] = set()
    for file in files:
        for prompt in read_prompts(file):
            if prompt.id in seen:
                raise ConfigError(f"{file}: the id {prompt.id!r} occurs twice; make it unique")
            seen.add(prompt.id)
            by_class.setdefault(prompt.kind, []).append(prompt)
    turns = zip_longest(*by_class.values())
    return [prompt for turn in turns for prompt in turn if prompt is not None]


def read_prompts(file: Path) -> Iterator[Prompt]:
    try:
        with file.open("rb") as lines:
            content = lines.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {file} ({error.strerror}); check the path") from None
    if len(content) > _MAX_FILE_BYTES:
        raise ConfigError(f"{file} is over {_MAX_FILE_BYTES >> 20} MB; split it")
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            yield _decode(line, f"{file}, line {number}")


def _decode(line: bytes, where: str) -> Prompt:
    try:
        prompt = msgspec.json.decode(line, type=Prompt)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f'{where}: not a record of the form {{"id", "class", "prompt"}} ({error})'
        ) from None
    if not (prompt.id and prompt.kind and prompt.prompt.strip()):
        raise ConfigError(f"{where}: id, class and prompt must not be empty")
    return prompt
