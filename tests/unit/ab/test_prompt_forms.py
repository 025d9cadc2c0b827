"""Files of the usual forms, and lines that are none."""

import json
from pathlib import Path

import pytest

from sglang_speckv.ab import prompts as module
from sglang_speckv.ab.prompts import find_prompts
from sglang_speckv.ab.request import Message
from sglang_speckv.config import ConfigError

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Yes."},
]
FORMS = {
    "own": {"id": "a", "class": "code", "prompt": "x"},
    "openai": {"messages": CHAT},
    "batch": {"custom_id": "b", "body": {"messages": CHAT}},
    "sharegpt": {"id": "c", "conversations": [{"from": "human", "value": "x"}, {"from": "gpt"}]},
    "sharegpt-chat": {"conversation": [{"role": "user", "content": "x"}]},
    "mt-bench": {"question_id": 81, "category": "writing", "turns": ["x", "and then?"]},
}


def read(path: Path, *records: object) -> list[module.Prompt]:
    path.write_text("\n".join(json.dumps(record) for record in records))
    return find_prompts(str(path))


@pytest.mark.parametrize("form", FORMS)
def test_forms(tmp_path: Path, form: str):
    (prompt,) = read(tmp_path / "f.jsonl", FORMS[form])
    assert prompt.chat()[-1]["role"] == "user"
    assert prompt.id and prompt.kind


def test_a_chat_ends_with_the_users_last_word(tmp_path: Path):
    (prompt,) = read(tmp_path / "f.jsonl", FORMS["openai"])
    assert prompt.messages == (Message("system", "Be brief."), Message("user", "Hello?"))
    assert prompt.prompt == "Hello?"


def test_mt_bench_has_classes_and_first_turns(tmp_path: Path):
    (prompt,) = read(tmp_path / "f.jsonl", FORMS["mt-bench"])
    assert (prompt.id, prompt.kind, prompt.prompt) == ("81", "writing", "x")


def test_a_json_list_is_a_file_too(tmp_path: Path):
    path = tmp_path / "f.json"
    path.write_text(json.dumps([FORMS["sharegpt"], FORMS["mt-bench"]]))
    assert [prompt.kind for prompt in find_prompts(str(path))] == ["c", "writing"]


def test_classes_take_turns(tmp_path: Path):
    records = [
        {"id": f"{kind}{i}", "class": kind, "prompt": "x"} for kind in "ab" for i in range(2)
    ]
    assert [p.id for p in read(tmp_path / "f.jsonl", *records)] == ["a0", "b0", "a1", "b1"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "line 2: not a prompt"),
        ("[1]", "line 2: not a prompt"),
        ('{"text": "x"}', "line 2: not a record of the form"),
        ('{"id": 3, "class": "a", "prompt": "x"}', "line 2: not a prompt"),
        ('{"turns": [1]}', "line 2: not a prompt"),
        ('{"messages": [{"role": "user"}]}', "line 2: not a prompt"),
        ('{"messages": []}', "line 2: id, class and prompt must not be empty"),
        ('{"conversations": [{"from": "gpt", "value": "x"}]}', "must not be empty"),
        ('{"body": {"messages": "x"}}', "line 2: not a prompt"),
        ('{"id": "own", "class": "a", "prompt": "x"}', "'own' occurs twice"),
        ('{"a":' * 3000 + "1" + "}" * 3000, "line 2: not a prompt"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str):
    path = tmp_path / "f.jsonl"
    path.write_text('{"id": "own", "class": "a", "prompt": "x"}\n' + line)
    with pytest.raises(ConfigError, match=message):
        find_prompts(str(path))


def test_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_MAX_RECORDS", 2)
    with pytest.raises(ConfigError, match="more than 2 prompts"):
        read(tmp_path / "f.jsonl", *({"id": str(i), "class": "a", "prompt": "x"} for i in range(3)))
    monkeypatch.setattr(module, "_MAX_PROMPT_CHARS", 3)
    with pytest.raises(ConfigError, match="more than 3 characters"):
        read(tmp_path / "f.jsonl", {"id": "1", "class": "a", "prompt": "long"})
