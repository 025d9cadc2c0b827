"""Prompts in classes: the shipped ones, or files in the usual forms.

A ``*.jsonl`` line is one of

    {"id": "code-01", "class": "code", "prompt": "..."}                  this project's own
    {"messages": [{"role": "user", "content": "..."}]}                   OpenAI chat
    {"conversations": [{"from": "human", "value": "..."}]}               ShareGPT
    {"question_id": 81, "category": "writing", "turns": ["...", "..."]}  MT-Bench

(of MT-Bench the first turn; of a ShareGPT conversation the first question; of a chat everything up
to the last user message). A ``*.json`` file is a list of such records.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import msgspec

from sglang_speckv.ab.request import Message, Prompt
from sglang_speckv.config import ConfigError
from sglang_speckv.files import BAD_JSON, read_bounded

DEMO_PROMPTS = Path(__file__).with_name("demo_prompts")
_MAX_FILE_BYTES = 256 << 20
_MAX_RECORDS = 20_000
_MAX_PROMPT_CHARS = 1 << 20


def find_prompts(spec: str | None) -> list[Prompt]:
    """A folder of ``*.jsonl``, or one file; classes take turns. None is the prompts that come with
    the package."""
    if spec is None:
        return load_prompts()
    path = Path(spec).expanduser()
    return in_turn(read_prompts(path)) if path.is_file() else load_prompts(path)


def load_prompts(folder: Path = DEMO_PROMPTS) -> list[Prompt]:
    """All prompts of a folder, classes taking turns, so that any run of them is balanced."""
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise ConfigError(
            f"{folder} holds no *.jsonl prompts; name another folder with --prompts FOLDER"
        )
    return in_turn(prompt for file in files for prompt in read_prompts(file))


def in_turn(prompts: Iterable[Prompt]) -> list[Prompt]:
    """One of each class, then the next of each; ids must be unique."""
    by_class: dict[str, list[Prompt]] = {}
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise ConfigError(f"the prompt id {prompt.id!r} occurs twice; make it unique")
        seen.add(prompt.id)
        by_class.setdefault(prompt.kind, []).append(prompt)
    turns = zip_longest(*by_class.values())
    return [prompt for turn in turns for prompt in turn if prompt is not None]


def read_prompts(file: Path) -> Iterator[Prompt]:
    """The prompts of one file, at most a bounded number of them."""
    content = read_bounded(file, _MAX_FILE_BYTES)
    if file.suffix == ".json":
        yield from _from_list(content, file)
        return
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            _check_count(number, file)
            yield _decode(line, f"{file}, line {number}", f"{file.stem}-{number}")


def _from_list(content: bytes, file: Path) -> Iterator[Prompt]:
    try:
        records = msgspec.json.decode(content, type=list[msgspec.Raw])
    except BAD_JSON as error:
        raise ConfigError(f"{file}: not a JSON list of prompts ({error})") from None
    for number, record in enumerate(records, 1):
        _check_count(number, file)
        yield _decode(bytes(record), f"{file}, entry {number}", f"{file.stem}-{number}")


def _check_count(number: int, file: Path) -> None:
    if number > _MAX_RECORDS:
        raise ConfigError(f"{file} has more than {_MAX_RECORDS} prompts; split it")


def _decode(line: bytes, where: str, name: str) -> Prompt:
    try:
        record = msgspec.json.decode(line, type=dict[str, Any])
        prompt = _as_prompt(record, name)
    except BAD_JSON as error:
        raise ConfigError(f"{where}: not a prompt ({error})") from None
    if prompt is None:
        raise ConfigError(
            f'{where}: not a record of the form {{"id", "class", "prompt"}}, nor one with '
            '"messages", "conversations" or "turns"'
        )
    text = "".join(message["content"] for message in prompt.chat())
    if not (prompt.id and prompt.kind and text.strip()):
        raise ConfigError(f"{where}: id, class and prompt must not be empty")
    if len(text) > _MAX_PROMPT_CHARS:
        raise ConfigError(f"{where}: the prompt has more than {_MAX_PROMPT_CHARS} characters")
    return prompt


def _as_prompt(record: dict[str, Any], name: str) -> Prompt | None:
    """By the one key that each form has; raises where a value has another type than it should."""
    if "prompt" in record:
        return msgspec.convert(record, Prompt)
    name = str(record.get("question_id", record.get("id", record.get("custom_id", name))))
    kind = str(record.get("class", record.get("category", re.sub(r"[-_]?\d+\Z", "", name))))
    if "turns" in record:
        turns = msgspec.convert(record["turns"], tuple[str, ...])
        return Prompt(name, kind, turns[0] if turns else "")
    if "conversations" in record or "conversation" in record:
        conversation = record.get("conversations", record.get("conversation"))
        said = msgspec.convert(conversation, list[dict[str, Any]])
        return Prompt(name, kind or "sharegpt", _first_question(said))
    body = msgspec.convert(record.get("body", {}), dict[str, Any])
    chat = record.get("messages", body.get("messages"))
    if chat is None:
        return None
    return chat_prompt(name, kind, msgspec.convert(chat, list[Message]))


def _first_question(turns: list[dict[str, Any]]) -> str:
    for turn in turns:
        if turn.get("from", turn.get("role")) in ("human", "user"):
            return str(turn.get("value", turn.get("content", "")))
    return ""


def chat_prompt(name: str, kind: str, messages: list[Message]) -> Prompt:
    """A chat up to the last user message."""
    last = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
    kept = tuple(messages[: last + 1])
    question = kept[-1].content if kept else ""
    return Prompt(name, kind or "chat", question, () if len(kept) == 1 else kept)
